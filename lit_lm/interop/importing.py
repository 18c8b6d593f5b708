"""Make a checkpoint of a model of another program."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path

from torch import Tensor
from torch.nn.functional import pad

from lit_lm.checkpoint import weights_content, write_checkpoint
from lit_lm.interop.foreign import ForeignModel
from lit_lm.model.config import TransformerConfig
from lit_lm.tokenizer.tokenizer import Tokenizer

FOLDERS = {"lit_model.pth": "litgpt", "config.json": "hf"}
"""Module that reads a folder with this file."""
FILES = {".pt": "nanogpt", ".bin": "llama2c"}
"""Module that reads a file with this suffix."""


def import_model(path: Path, output: Path, tokenizer: Path | None = None, *, overwrite: bool = False) -> str:
    """Write a checkpoint from a model of another program; returns a line that says what was written.

    Args:
        path: Folder or file of the model.
        output: Checkpoint to write.
        tokenizer: File or folder of the tokenizer, for models that come without one.
        overwrite: Whether to replace what is at `output`.

    Raises:
        ModuleNotFoundError: if a package is missing that is needed to read the model.
        FileNotFoundError, ValueError: if the model cannot be read, or the checkpoint exists.
    """
    if output.exists() and not overwrite:
        raise ValueError(f"{output} exists; pass --overwrite to replace it")
    read = import_module(f"lit_lm.interop.{kind_of(path)}").read
    model: ForeignModel = read(path, None if tokenizer is None else Tokenizer.load(tokenizer))
    config, weights, size = model.config, model.weights, model.tokenizer.vocab_size
    if size == config.vocab_size + 1:
        config, weights = _with_end_token(config, weights)
    if size > config.vocab_size:
        raise ValueError(f"{path} has a vocab_size of {config.vocab_size}, but its tokenizer has {size} tokens")
    write_checkpoint(weights_content(config, weights, model.tokenizer, model.chat_template), output)
    count = sum(tensor.numel() for tensor in {id(tensor): tensor for tensor in weights.values()}.values())
    return f"{output}: {count:,} parameters, context {config.context_length:,}, {size:,} tokens"


def _with_end_token(
    config: TransformerConfig, weights: dict[str, Tensor]
) -> tuple[TransformerConfig, dict[str, Tensor]]:
    """Add a row of zeros for the end token that a tokenizer has got from lit-lm."""
    grown = {name: pad(weights[name], (0, 0, 0, 1)) for name in ("embedding.weight", "head.weight")}
    if config.tie_embeddings:
        grown["head.weight"] = grown["embedding.weight"]
    return replace(config, vocab_size=config.vocab_size + 1), weights | grown


def kind_of(path: Path) -> str:
    """Name of the module that reads what is at `path`.

    Raises:
        FileNotFoundError: if there is nothing, or nothing that is known.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}; download the model first")
    if path.is_file() and path.suffix in FILES:
        return FILES[path.suffix]
    if (found := next((kind for name, kind in FOLDERS.items() if (path / name).is_file()), None)) is None:
        raise FileNotFoundError(
            f"there is no model at {path}; it can be a folder with {' or '.join(FOLDERS)}, or a file with the suffix "
            f"{' or '.join(FILES)}"
        )
    return found
