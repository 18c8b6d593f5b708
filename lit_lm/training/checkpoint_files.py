"""CheckpointIO plugin: each checkpoint file is complete or absent, and has a digest."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import CheckpointIO
from torch.distributed.tensor import DTensor

from lit_lm.checkpoint import Checkpoint, digest_file, read_checkpoint, write_checkpoint
from lit_lm.errors import first_line
from lit_lm.training.joint_write import JointWriter


class CheckpointFiles(CheckpointIO):
    """Makes the Trainer use `write_checkpoint` and `read_checkpoint`."""

    def __init__(self, loaded: Checkpoint | None = None) -> None:
        """
        Args:
            loaded: Checkpoint that was already read; the Trainer resumes from it without reading the file again.
        """
        self._loaded = loaded
        self._writer = JointWriter()
        self._in_background = False
        self._problem: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint and its digest. If it is sharded, all processes must call this.

        Raises:
            OSError: if it cannot be written, except inside `in_background`.
        """
        self._wait()
        try:
            if any(isinstance(weight, DTensor) for weight in checkpoint["state_dict"].values()):
                self._writer.start(checkpoint, Path(path))
                if not self._in_background:
                    self._writer.finish()
            else:
                write_checkpoint(checkpoint, Path(path))
        except Exception as error:  # whatever it is, the other processes wait
            if not self._in_background:
                raise
            self._problem = first_line(error)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return the content of a checkpoint, on the CPU; without the state of an optimizer if only weights were saved.

        Raises:
            FileNotFoundError, ValueError: see `read_checkpoint`.
        """
        loaded, self._loaded = self._loaded, None
        if loaded is None or loaded.path != Path(path):
            loaded = read_checkpoint(path)
        nothing = {"callbacks": {}, "optimizer_states": [{"state": {}, "param_groups": [], "class": "no optimizer"}]}
        return nothing | loaded.content

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and its digest."""
        for file in (Path(path), digest_file(Path(path))):
            file.unlink(missing_ok=True)

    @contextmanager
    def in_background(self) -> Iterator[None]:
        """Inside the block, saving a sharded checkpoint only starts to write it, and errors are kept for `finish`: if
        the one process that writes raised them, the others would wait for it.
        """
        self._in_background = True
        try:
            yield
        finally:
            self._in_background = False

    def finish(self) -> str | None:
        """Wait until the checkpoint that was saved `in_background` is written; returns the error if it could not be."""
        self._wait()
        problem, self._problem = self._problem, None
        return problem

    def _wait(self) -> None:
        try:
            self._writer.finish()
        except OSError as error:
            self._problem = first_line(error)
