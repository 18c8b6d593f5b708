"""Writing one checkpoint file by many processes: each writes its rows of the sharded tensors, at their place.

The file is the one that a single process would write, so every command reads it, torch.load too, and any number of
processes resumes from it.
"""

import errno
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map

from lit_lm.checkpoint import checkpoint_file
from lit_lm.files import unfinished_path
from lit_lm.optim.sharded import rows_before


def write_jointly(content: dict[str, Any], path: Path, group: ProcessGroup | None = None) -> None:
    """Write a checkpoint and its digest. All processes must call this.

    Args:
        content: The content; its DTensors are sharded by rows. Everything else is written by the first process.
        path: File on a disk that all processes share.
        group: The processes; None: all.

    Raises:
        OSError: on all processes, if one of them cannot write; no unfinished files remain.
    """
    is_first = dist.get_rank(group) == 0
    with checkpoint_file(path) if is_first else nullcontext() as file:
        _agree(lambda: _reserve(content, file) if is_first else None, group)
        _agree(lambda: _fill(content, unfinished_path(path), is_first), group)


def _agree(action: Callable[[], None], group: ProcessGroup | None) -> None:
    """Act, and wait for the other processes.

    Raises:
        OSError: if the action failed on one of them.
    """
    problem: OSError | None = None
    try:
        action()
    except OSError as error:
        problem = error
    except RuntimeError as error:  # of torch's writer
        problem = OSError(errno.EIO, str(error).splitlines()[0])
    problems = [problem] * dist.get_world_size(group)
    dist.all_gather_object(problems, problem, group)
    for found in problems:
        if found is not None:
            raise found


def _reserve(content: dict[str, Any], file: Any) -> None:
    """Write everything but the numbers of the tensors, for which there is room."""
    shared: dict[int, Tensor] = {}

    def placeholder(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        key = (value.to_local() if isinstance(value, DTensor) else value).data_ptr()  # tied weights are written once
        with FakeTensorMode():
            return shared.setdefault(key, torch.empty(value.shape, dtype=value.dtype))

    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(tree_map(placeholder, content), file)
    file.flush()


def _fill(content: dict[str, Any], path: Path, is_first: bool) -> None:
    """Write the numbers of the tensors that this process holds."""
    places = torch.load(path, map_location="meta", weights_only=True)
    with open(path, "r+b") as file:

        def write(value: Any, place: Any) -> None:
            if isinstance(value, DTensor):
                start = rows_before(value) * value[0].numel() if value.ndim else 0
                part = value.to_local()
            elif isinstance(value, Tensor) and is_first:
                start, part = 0, value
            else:
                return
            file.seek(place.untyped_storage()._checkpoint_offset + start * part.itemsize)
            file.write(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)

        tree_map(write, content, places)
        file.flush()
        os.fsync(file.fileno())
