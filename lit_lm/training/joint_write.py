"""Writing one checkpoint file by many processes: each writes its part of the sharded tensors, at its place.

The file is the one that a single process would write, so every command reads it, torch.load too, and any number of
processes resumes from it.
"""

import errno
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map

from lit_lm.checkpoint import checkpoint_file
from lit_lm.errors import first_line
from lit_lm.files import unfinished_path
from lit_lm.optim.sharded import holds_first_copy, place_of


class JointWriter:
    """Writes checkpoints together with the other processes, while training continues."""

    def __init__(self) -> None:
        self._group: ProcessGroup | None = None
        """A group of its own, because training sends messages meanwhile."""
        self._thread: Thread | None = None
        self._problem: OSError | None = None

    def start(self, content: dict[str, Any], path: Path) -> None:
        """Copy this process's part of a checkpoint, and begin to write it. All processes must call this.

        Args:
            content: The content; its DTensors are sharded. Everything else is written by the first process.
            path: File on a disk that all processes share.
        """
        assert self._thread is None
        self._group = self._group or dist.new_group(backend="gloo")
        is_first = dist.get_rank() == 0
        part = tree_map(lambda value: _Part.of(value, is_first) if isinstance(value, Tensor) else value, content)
        self._thread = Thread(target=self._write, args=(part, path), daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait until the checkpoint is written, if one is being written.

        Raises:
            OSError: on all processes, if one of them could not write; no unfinished files remain.
        """
        if self._thread is not None:
            self._thread.join()
        problem, self._problem, self._thread = self._problem, None, None
        if problem is not None:
            raise problem

    def _write(self, content: dict[str, Any], path: Path) -> None:
        try:
            _write_jointly(content, path, self._group)
        except Exception as error:  # of another process that was lost, too
            self._problem = _os_error(error)


@dataclass(frozen=True)
class _Part:
    """A tensor, and the numbers of it that this process writes."""

    shape: torch.Size
    address: int
    """Where the tensor was in memory: tied weights are written once."""
    start: int
    """Index of the first number, in the order of the file."""
    step: int
    """Distance between the first numbers of two runs."""
    runs: Tensor
    """Numbers that follow each other in the file, in rows; a copy on the CPU."""

    @staticmethod
    def of(tensor: Tensor, is_first: bool) -> "_Part":
        """The part of this process. What several processes hold is a part of the first of them."""
        here, start, step = tensor, 0, tensor.shape[1:].numel()
        if isinstance(tensor, DTensor):
            here = tensor.to_local()
            start = sum(part.start * step for part, step in zip(place_of(tensor), tensor.stride(), strict=True))
            is_first = holds_first_copy(tensor)
        runs = here.detach() if here.shape[1:].numel() < step else here.detach().flatten().unsqueeze(0)
        runs = runs if is_first else runs[:0]
        return _Part(tensor.shape, here.data_ptr(), start, step, runs.to("cpu", copy=True))


def _write_jointly(content: dict[str, Any], path: Path, group: ProcessGroup | None) -> None:
    """Write a checkpoint, whose tensors are `_Part`s, and its digest. All processes of `group` must call this.

    Raises:
        OSError: on all processes, if one of them cannot write; no unfinished files remain.
    """
    is_first = dist.get_rank(group) == 0
    with ExitStack() as stack:
        _agree(lambda: _reserve(content, stack.enter_context(checkpoint_file(path))) if is_first else None, group)
        _agree(lambda: _fill(content, unfinished_path(path)), group)
        _agree(stack.close, group)  # the digest, and the name


def _agree(action: Callable[[], None], group: ProcessGroup | None) -> None:
    """Act, and wait for the other processes.

    Raises:
        OSError: if the action failed on one of them.
    """
    problem: OSError | None = None
    try:
        action()
    except Exception as error:  # whatever it is, the other processes wait
        problem = _os_error(error)
    problems = [problem] * dist.get_world_size(group)
    dist.all_gather_object(problems, problem, group)
    for found in problems:
        if found is not None:
            raise found


def _os_error(error: Exception) -> OSError:
    return error if isinstance(error, OSError) else OSError(errno.EIO, first_line(error))


def _reserve(content: dict[str, Any], file: Any) -> None:
    """Write everything but the numbers of the tensors, for which there is room."""
    shared: dict[Any, Tensor] = {}

    def placeholder(value: Any) -> Any:
        if not isinstance(value, _Part):
            return value
        with FakeTensorMode():
            empty = torch.empty(value.shape, dtype=value.runs.dtype)
            return shared.setdefault((value.address, value.shape), empty)

    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(tree_map(placeholder, content), file)
    file.flush()
    os.fsync(file.fileno())  # so that other machines see it on a shared disk


def _fill(content: dict[str, Any], path: Path) -> None:
    """Write the numbers of the tensors that this process holds."""
    places = torch.load(path, map_location="meta", weights_only=True)
    with open(path, "r+b") as file:

        def write(value: Any, place: Any) -> None:
            if isinstance(value, _Part):
                offset = place.untyped_storage()._checkpoint_offset
                for number, run in enumerate(value.runs):
                    file.seek(offset + (value.start + number * value.step) * run.itemsize)
                    file.write(run.view(torch.uint8).numpy().data)

        tree_map(write, content, places)
        file.flush()
        os.fsync(file.fileno())
