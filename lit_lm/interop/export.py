"""Export a checkpoint to a format."""

import shutil
from importlib import import_module
from pathlib import Path

from safetensors import SafetensorError

from lit_lm.checkpoint import Checkpoint
from lit_lm.files import unfinished_path
from lit_lm.model.config import TransformerConfig
from lit_lm.model.cost import skeleton

IN_EXPORTS = ("config.json", "model.safetensors", "model.bin")
"""Every folder that is written here has one of these files."""


def export(checkpoint: Checkpoint, to: str, output: Path, dtype: str, *, overwrite: bool = False) -> str:
    """Write a checkpoint in one of FORMATS; returns a line that says what was written and how it was checked.

    The output appears under its name when it is complete and has been compared with the model.

    Args:
        checkpoint: Model and tokenizer.
        to: Name of the format.
        output: File or folder to write.
        dtype: Name of the data type of the weights, one of the format's.
        overwrite: Whether to replace what is at `output`.

    Raises:
        ModuleNotFoundError: if a package is missing that the format needs.
        ValueError: if the format cannot express the model, the output exists, or it does not compute the same.
        OSError: if it cannot be written.
    """
    write = import_module(f"lit_lm.interop.{to}").write
    if checkpoint.weights.keys() != skeleton(TransformerConfig(**checkpoint.model["net"])).state_dict().keys():
        raise ValueError(f"{checkpoint.path} has other weights than a Transformer of its config")
    if output.exists() and not overwrite:
        raise ValueError(f"{output} exists; pass --overwrite to replace it")
    if output.is_dir() and any(output.iterdir()) and not any((output / name).is_file() for name in IN_EXPORTS):
        raise ValueError(f"{output} is a folder that lit-lm export did not write; pass the name of a new one")
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_path(output)
    _remove(unfinished)
    try:
        written = write(checkpoint, unfinished, dtype)
        _remove(output)
        unfinished.rename(output)
    except BaseException as error:
        _remove(unfinished)
        if isinstance(error, OSError | SafetensorError):  # some libraries name neither the file nor the cause
            raise OSError(f"{output} cannot be written; is the disk full? ({error})") from None
        raise
    return f"{output}: {written}"


def _remove(path: Path) -> None:
    """Remove a file or folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
