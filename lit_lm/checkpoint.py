"""What a checkpoint holds, and reading one safely.

A checkpoint is the Trainer's file and stands alone: beside the weights and the Trainer's own state it has the
hyperparameters of model and data as plain values, and the tokenizer. It is data: it is read with `weights_only`, which
admits tensors and plain values and runs no code.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lit_lm.model import Transformer, TransformerConfig
from lit_lm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Checkpoint:
    """The parts of a checkpoint that outlive the run."""

    model: dict[str, Any]
    """LitLM's hyperparameters."""
    data: dict[str, Any]
    """LMDataModule's hyperparameters."""
    tokenizer: Tokenizer
    weights: dict[str, torch.Tensor]
    """The Transformer's state dict, mapped from the file rather than read."""

    def transformer(self) -> Transformer:
        """The model, in evaluation mode on the CPU."""
        model = Transformer(TransformerConfig(**self.model["net"]))
        model.load_state_dict(self.weights)
        return model.eval()


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of `lit-lm fit`.

    Raises:
        FileNotFoundError: if there is no file at `path`.
        ValueError: if it is damaged, holds more than data, or was not written by lit-lm.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError and others for a bad file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} cannot be read as a checkpoint, it is damaged or not one ({reason})") from None
    try:
        return Checkpoint(
            model=_plain(content["hyper_parameters"]),
            data=_plain(content["datamodule_hyper_parameters"]),
            tokenizer=Tokenizer.from_json(content["LMDataModule"]["tokenizer"]),
            weights={
                key.removeprefix("net."): value
                for key, value in content["state_dict"].items()
                if key.startswith("net.")
            },
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} was not written by lit-lm ({type(error).__name__}: {error})") from None


def _plain(hyperparameters: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in dict(hyperparameters).items() if not key.startswith("_")}
