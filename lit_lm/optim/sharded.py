"""Parameters that are shared out over processes (FSDP2, tensor parallelism), and the exchange of parts for matrices.

Shapes: N matrices (rows, cols) of a shape, n of them whole on this process, and of each a part (r, c).
"""

from collections.abc import Iterable, Sequence
from itertools import product
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

if TYPE_CHECKING:  # its import takes a second
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


def local_parts(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The parts of tensors that this process holds: everything unless they are sharded."""
    return [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]


def group_of(tensor: Tensor) -> ProcessGroup | None:
    """The processes that a tensor is shared out over; None: it is not sharded."""
    if not hasattr(tensor, "device_mesh"):
        return None
    mesh: DeviceMesh = tensor.device_mesh
    return mesh.get_group() if mesh.ndim == 1 else dist.group.WORLD  # FSDP2 and tensor parallelism: all processes


def holds_first_copy(tensor: Tensor) -> bool:
    """Whether this process is the first of those that hold the same part of a tensor."""
    return not hasattr(tensor, "device_mesh") or 0 in tensor.device_mesh.mesh


def total_norm(tensors: list[Tensor]) -> Tensor:
    """2-norm of all numbers of all tensors, in float32, whether they are sharded or not."""
    norm = torch.nn.utils.get_total_norm(local_parts(filter(holds_first_copy, tensors))).float()
    if any(hasattr(tensor, "device_mesh") for tensor in tensors):
        dist.all_reduce(square := norm.square())
        norm = square.sqrt()
    return norm


def places_of(tensor: "DTensor") -> list[tuple[slice, ...]]:
    """The place of what each process of `group_of(tensor)` holds of a sharded tensor, in order."""
    return [place_of(tensor, coordinate) for coordinate in product(*(range(size) for size in tensor.device_mesh.shape))]


def place_of(tensor: "DTensor", coordinate: Sequence[int] | None = None) -> tuple[slice, ...]:
    """The place of what a process holds of a sharded tensor: a slice of each dimension.

    Args:
        tensor: The tensor. The last dimension of its mesh divides it first, because `fully_shard` divides what tensor
            parallelism has left. Each divides as torch.chunk: the last process may have less, or nothing.
        coordinate: The process's place in the mesh; None: this process.
    """
    mesh = tensor.device_mesh
    coordinate = coordinate or mesh.get_coordinate()
    assert coordinate is not None
    begins, sizes = [0] * tensor.ndim, list(tensor.shape)
    for index, number, placement in reversed(list(zip(coordinate, mesh.shape, tensor.placements, strict=True))):
        dim: int = placement.dim  # type: ignore[attr-defined]
        most = -(-sizes[dim] // number)
        before = min(index * most, sizes[dim])
        begins[dim], sizes[dim] = begins[dim] + before, min(most, sizes[dim] - before)
    return tuple(slice(begin, begin + size) for begin, size in zip(begins, sizes, strict=True))


def parts_to_matrices(parts: Tensor, like: "DTensor") -> Tensor:
    """Send each process its matrices: of N matrices, process p of P gets numbers p, p + P, p + 2 P and so on.

    parts (N, r, c) is what this process holds of matrices that are sharded as `like` -> (n, rows, cols).
    """
    group = _group(like)
    counts = _counts(len(parts), group)
    matrices = parts.new_empty(counts[group.rank()], *like.shape)
    targets = [matrices[:, *where] for where in places_of(like)]
    sent = torch.cat([parts[process :: group.size()].flatten() for process in range(group.size())])
    to, received_from = [count * parts[0].numel() for count in counts], [target.numel() for target in targets]
    for target, piece in zip(targets, _exchange(sent, to, received_from, group), strict=True):
        target.copy_(piece.view(target.shape))
    return matrices


def matrices_to_parts(matrices: Tensor, number: int, like: "DTensor") -> Tensor:
    """Send each process its parts; the reverse of `parts_to_matrices`.

    matrices (n, rows, cols), number N -> (N, r, c).
    """
    group = _group(like)
    counts = _counts(number, group)
    parts = matrices.new_empty(number, *like.to_local().shape)
    pieces = [matrices[:, *where].flatten() for where in places_of(like)]
    to, received_from = [len(piece) for piece in pieces], [count * parts[0].numel() for count in counts]
    for process, piece in enumerate(_exchange(torch.cat(pieces), to, received_from, group)):
        parts[process :: group.size()] = piece.view(counts[process], *parts.shape[1:])
    return parts


def _group(tensor: Tensor) -> ProcessGroup:
    group = group_of(tensor)
    assert group is not None
    return group


def _counts(number: int, group: ProcessGroup) -> list[int]:
    """Number of whole matrices on each process."""
    return [len(range(process, number, group.size())) for process in range(group.size())]


def _exchange(sent: Tensor, to: list[int], received_from: list[int], group: ProcessGroup) -> tuple[Tensor, ...]:
    """Send `to[p]` numbers to each process p, in order, and return what each process sent here."""
    received = sent.new_empty(sum(received_from))
    dist.all_to_all_single(received, sent, received_from, to, group=group)
    return torch.split(received, received_from)
