"""CheckpointIO plugin: each checkpoint file is complete or absent, and has a digest."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import CheckpointIO
from torch.distributed.tensor import DTensor

from lit_lm.checkpoint import Checkpoint, digest_file, read_checkpoint, write_checkpoint
from lit_lm.training.joint_write import write_jointly


class CheckpointFiles(CheckpointIO):
    """Makes the Trainer use `write_checkpoint` and `read_checkpoint`."""

    def __init__(self, loaded: Checkpoint | None = None) -> None:
        """
        Args:
            loaded: Checkpoint that was already read; the Trainer resumes from it without reading the file again.
        """
        self._loaded = loaded
        self._problems: list[str] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint and its digest. If it is sharded, all processes must call this.

        Raises:
            OSError: if it cannot be written, except inside `problems_kept`.
        """
        is_sharded = any(isinstance(weight, DTensor) for weight in checkpoint["state_dict"].values())
        try:
            (write_jointly if is_sharded else write_checkpoint)(checkpoint, Path(path))
        except OSError as error:
            if self._problems is None:
                raise
            self._problems.append(str(error).splitlines()[0])

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
    def problems_kept(self) -> Iterator[list[str]]:
        """Inside the block, append write errors to the yielded list instead of raising them: only one process writes,
        and the others would wait for it.
        """
        self._problems = []
        try:
            yield self._problems
        finally:
            self._problems = None
