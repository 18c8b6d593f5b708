"""Small decoder-only language models, trained from scratch with PyTorch Lightning.

The names below are the public interface for Python. Each is imported when it is first used: `import lit_lm` does not
import torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_lm.cli.train import Config as Config
    from lit_lm.cli.train import train as train
    from lit_lm.data.datamodule import LMDataModule as LMDataModule
    from lit_lm.inference.language_model import LanguageModel as LanguageModel
    from lit_lm.inference.language_model import load as load
    from lit_lm.model.config import TransformerConfig as TransformerConfig
    from lit_lm.model.transformer import Transformer as Transformer
    from lit_lm.tokenizer.tokenizer import Tokenizer as Tokenizer
    from lit_lm.training.module import LitLM as LitLM
    from lit_lm.training.run import Run as Run

__version__ = version("lit-lm")

_MODULES = {
    "Config": "cli.train",
    "LMDataModule": "data.datamodule",
    "LanguageModel": "inference.language_model",
    "LitLM": "training.module",
    "Run": "training.run",
    "Tokenizer": "tokenizer.tokenizer",
    "Transformer": "model.transformer",
    "TransformerConfig": "model.config",
    "load": "inference.language_model",
    "train": "cli.train",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"lit_lm.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
