"""Parameters whose rows are shared out over processes (FSDP2), and the exchange of rows for whole matrices.

Shapes: N matrices of a shape, n of them whole on this process, `rows` in all, r on this process.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

if TYPE_CHECKING:  # its import takes a second
    from torch.distributed.tensor import DTensor


def local_parts(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The parts of tensors that this process holds: everything unless they are sharded."""
    return [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]


def group_of(tensor: Tensor) -> ProcessGroup | None:
    """The processes that a tensor's rows are shared out over; None: it is not sharded."""
    return tensor.device_mesh.get_group() if hasattr(tensor, "device_mesh") else None


def total_norm(tensors: list[Tensor]) -> Tensor:
    """2-norm of all numbers of all tensors, in float32, whether they are sharded or not."""
    norm = torch.nn.utils.get_total_norm(tensors).float()
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def rows_to_matrices(parts: Tensor, rows: int, group: ProcessGroup) -> Tensor:
    """Send each process its matrices: of N matrices, process p of P gets numbers p, p + P, p + 2 P and so on.

    parts (N, r, cols) are the rows on this process -> (n, rows, cols).
    """
    number, _, cols = parts.shape
    sizes, counts = _sizes(rows, group), _counts(number, group)
    here, each = counts[group.rank()], sizes[group.rank()] * cols
    sent = torch.cat([parts[process :: group.size()].flatten() for process in range(group.size())])
    received = _exchange(sent, [count * each for count in counts], [here * size * cols for size in sizes], group)
    return torch.cat([piece.view(here, size, cols) for piece, size in zip(received, sizes, strict=True)], dim=1)


def matrices_to_rows(matrices: Tensor, number: int, group: ProcessGroup) -> Tensor:
    """Send each process its rows; the reverse of `rows_to_matrices`.

    matrices (n, rows, cols), number N -> (N, r, cols).
    """
    rows, cols = matrices.shape[1:]
    sizes, counts = _sizes(rows, group), _counts(number, group)
    here, size = counts[group.rank()], sizes[group.rank()]
    sent = torch.cat([piece.flatten() for piece in torch.split(matrices, sizes, dim=1)])
    received = _exchange(sent, [here * size * cols for size in sizes], [count * size * cols for count in counts], group)
    parts = matrices.new_empty(number, size, cols)
    for process, (piece, count) in enumerate(zip(received, counts, strict=True)):
        parts[process :: group.size()] = piece.view(count, size, cols)
    return parts


def rows_before(tensor: "DTensor") -> int:
    """Number of the tensor's rows on the processes before this one."""
    group = tensor.device_mesh.get_group()
    return sum(_sizes(tensor.shape[0], group)[: group.rank()])


def _sizes(rows: int, group: ProcessGroup) -> list[int]:
    """Number of rows on each process, as `fully_shard` and torch.chunk divide them: the last may have fewer or none."""
    most = -(-rows // group.size())
    return [max(0, min(most, rows - most * process)) for process in range(group.size())]


def _counts(number: int, group: ProcessGroup) -> list[int]:
    """Number of whole matrices on each process."""
    return [len(range(process, number, group.size())) for process in range(group.size())]


def _exchange(sent: Tensor, to: list[int], received_from: list[int], group: ProcessGroup) -> tuple[Tensor, ...]:
    """Send `to[p]` numbers to each process p, in order, and return what each process sent here."""
    received = sent.new_empty(sum(received_from))
    dist.all_to_all_single(received, sent, received_from, to, group=group)
    return torch.split(received, received_from)
