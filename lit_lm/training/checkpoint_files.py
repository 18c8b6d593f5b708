"""How a Trainer writes and reads checkpoints: as files that are whole or absent, each with a digest."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import CheckpointIO

from lit_lm.checkpoint import Checkpoint, digest_file, read_checkpoint, write_checkpoint


class CheckpointFiles(CheckpointIO):
    """The Trainer's plugin for checkpoints: `trainer.save_checkpoint` writes by `write_checkpoint`."""

    def __init__(self, loaded: Checkpoint | None = None) -> None:
        """
        Args:
            loaded: A checkpoint that was read already, and is not read again when the Trainer resumes from it.
        """
        self._loaded = loaded
        self._problems: list[str] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint and its digest.

        Raises:
            OSError, RuntimeError: if it cannot be written, but not while `problems_kept`.
        """
        try:
            write_checkpoint(checkpoint, Path(path))
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError for a full disk
            if self._problems is None:
                raise
            self._problems.append(str(error).splitlines()[0])

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The content of a checkpoint, on the CPU.

        Raises:
            FileNotFoundError, ValueError: as `read_checkpoint`.
        """
        loaded, self._loaded = self._loaded, None
        if loaded is None or loaded.path != Path(path):
            loaded = read_checkpoint(path)
        return loaded.content

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and its digest."""
        for file in (Path(path), digest_file(Path(path))):
            file.unlink(missing_ok=True)

    @contextmanager
    def problems_kept(self) -> Iterator[list[str]]:
        """While the block runs, what keeps a checkpoint from being written is added to the list instead of raised: the
        other processes do not learn of it, and would wait.
        """
        self._problems = []
        try:
            yield self._problems
        finally:
            self._problems = None
