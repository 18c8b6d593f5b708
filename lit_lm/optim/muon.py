"""Muon for the matrices of the blocks and AdamW for all other parameters, in one optimizer.

Muon replaces a matrix's gradient by the nearest matrix with all singular values near one, so that every direction is
learned at the same speed, even where the gradient is small (Jordan et al. 2024). This makes sense for matrices that map
one hidden vector to another. Rows of the embedding and the head are learned one by one, and vectors have no singular
values, so AdamW updates these.
"""

from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_lm.optim.adamw import AdamW
from lit_lm.optim.sharded import group_of, local_parts, matrices_to_parts, parts_to_matrices

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of X <- a X + b (X X^T) X + c (X X^T)^2 X, which raise small singular values fast (Jordan et al. 2024)."""
EPS = 1e-7
"""Lower bound of the norm that a gradient is divided by."""


def orthogonalize(matrices: Tensor, steps: int) -> Tensor:
    """Return U S V^T with S near one (0.7 to 1.2) for each U D V^T of matrices (N, rows, cols).

    Uses Newton-Schulz iteration, in the data type of `matrices` and as batched matrix products.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices  # (N, short, long), so that `gram` is small
    gram = x @ x.mT
    norm = gram.diagonal(dim1=-2, dim2=-1).sum(-1).sqrt().clamp(min=EPS)[:, None, None]
    gram = gram / norm.square()  # as if x had been divided by its norm, so that all singular values are at most one
    for step in range(steps):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
        x = (polynomial if step else polynomial / norm) @ x
        gram = x @ x.mT if step + 1 < steps else gram
    return x.mT if tall else x


@torch.no_grad()
def muon_step(
    parameters: list[Tensor],
    gradients: list[Tensor],
    momenta: list[Tensor],
    dimensions: list[int],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    newton_schulz_steps: int,
    block_size: int | None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """Apply one Muon update with Nesterov momentum in place; weight_decay, grad_scale, found_inf as in `adamw_step`.

    The orthogonalized update is scaled by max(1, sqrt(rows / cols)) (Jordan et al. 2024), and by nothing that grows
    with the model: it changes a hidden vector by the same fraction at every width, so one lr suits all widths.

    If the parameters are sharded, each process orthogonalizes its share of the matrices.
    """
    for dimension, numbers in _alike(parameters, dimensions):
        like = parameters[numbers[0]]
        weights, averages, matrices = (
            local_parts(each[number] for number in numbers) for each in (parameters, momenta, gradients)
        )
        if grad_scale is not None:
            matrices = list(torch._foreach_div(matrices, grad_scale))
        if found_inf is not None:  # leaves the averages unchanged
            pairs = zip(averages, matrices, strict=True)
            matrices = [torch.where(found_inf.bool(), average, matrix) for average, matrix in pairs]
        torch._foreach_lerp_(averages, matrices, 1 - momentum)
        directions = list(torch._foreach_lerp(matrices, averages, momentum))
        changes, rank = _orthogonalized(directions, like, dimension, newton_schulz_steps, block_size)
        if found_inf is not None:
            changes.mul_(1 - found_inf)
        if weight_decay:
            decay = lr * weight_decay if found_inf is None else lr * weight_decay * (1 - found_inf)
            torch._foreach_mul_(weights, 1 - decay)
        torch._foreach_add_(weights, list(changes.unbind()), alpha=-lr * (like.shape[0] / rank) ** 0.5)


class Muon(AdamW):
    """Muon for hidden matrices, AdamW for all other parameters."""

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 2e-2,
        adamw_lr: float = 4e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        newton_schulz_steps: int = 5,
        block_size: int | None = None,
    ) -> None:
        """
        Args:
            params: Parameters or parameter groups. A group's `muon` has None for each parameter that is not a hidden
                matrix, and for each that is, the dimension along which its heads or neurons lie: 0 or 1. Without
                `muon`, all matrices are hidden, and it is 0.
            lr: Peak learning rate of hidden matrices (Muon).
            adamw_lr: Peak learning rate of all other parameters (AdamW).
            momentum: Decay rate of the running average of the gradient, for Muon.
            betas: Decay rates of the running averages of the gradient and its square, for AdamW.
            eps: Added to the denominator, for AdamW.
            weight_decay: Weight decay coefficient, multiplied by the learning rate.
            newton_schulz_steps: Number of iterations that orthogonalize an update.
            block_size: Number of rows of heads or neurons that are orthogonalized by themselves; null: all, as in the
                paper. Blocks of 64 cost a fifth at d_model 512, and learn less per step.

        Raises:
            ValueError: if a value is out of range.
        """
        if adamw_lr < 0:
            raise ValueError(f"adamw_lr is {adamw_lr}; it must be at least 0")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}; it must be at least 0 and less than 1")
        if newton_schulz_steps < 1:
            raise ValueError(f"newton_schulz_steps is {newton_schulz_steps}; it must be at least 1")
        if block_size is not None and block_size < 1:
            raise ValueError(f"block_size is {block_size}; it must be at least 1, or null for whole matrices")
        self.momentum, self.newton_schulz_steps, self.block_size = momentum, newton_schulz_steps, block_size
        groups, self.dimensions = _split(params, adamw_lr)
        """For each hidden matrix, the dimension along which its heads or neurons lie."""
        super().__init__(groups, lr, betas, eps, weight_decay)

    def update(self, group: dict[str, Any]) -> None:
        """Update the parameters of one group."""
        if not group["muon"]:
            super().update(group)
            return
        parameters = [p for p in group["params"] if p.grad is not None]
        for parameter in parameters:
            if not (state := self.state[parameter]):
                state["momentum"] = torch.zeros_like(parameter)
        muon_step(
            parameters,
            [p.grad for p in parameters],
            [self.state[p]["momentum"] for p in parameters],
            [self.dimensions.get(p, 0) for p in parameters],
            lr=group["lr"],
            momentum=self.momentum,
            weight_decay=group["weight_decay"],
            newton_schulz_steps=self.newton_schulz_steps,
            block_size=self.block_size,
            grad_scale=self.grad_scale,
            found_inf=self.found_inf,
        )


def _split(
    params: Iterable[Tensor] | Iterable[dict[str, Any]], adamw_lr: float
) -> tuple[list[dict[str, Any]], dict[Tensor, int]]:
    """Split each group in two: hidden matrices for Muon, then the other parameters for AdamW.

    Returns the groups, and the dimension of each hidden matrix.
    """
    given: list[Any] = list(params)
    groups: list[dict[str, Any]] = []
    found: dict[Tensor, int] = {}
    for group in given if given and isinstance(given[0], dict) else [{"params": given}]:
        parameters = list(group["params"])
        dimensions = group.get("muon", [0] * len(parameters))
        options = {name: value for name, value in group.items() if name not in ("params", "muon")}
        muon = {p: d for p, d in zip(parameters, dimensions, strict=True) if d is not None and p.ndim == 2}
        rest = [p for p in parameters if p not in muon]
        if muon:
            groups.append({**options, "params": list(muon), "muon": True})
        if rest:
            groups.append({"lr": adamw_lr, **options, "params": rest, "muon": False})
        found |= muon
    return groups, found


def _alike(parameters: list[Tensor], dimensions: list[int]) -> Iterable[tuple[int, list[int]]]:
    """Return each dimension and the indices of the parameters of each shape that have it."""
    numbers = defaultdict(list)
    for number, (parameter, dimension) in enumerate(zip(parameters, dimensions, strict=True)):
        numbers[dimension, parameter.shape].append(number)
    return [(dimension, found) for (dimension, _), found in numbers.items()]


def _orthogonalized(
    parts: list[Tensor], like: Any, dimension: int, steps: int, block_size: int | None
) -> tuple[Tensor, int]:
    """Orthogonalize N matrices that are sharded as `like`, or not, of which this process holds parts (r, c).

    Returns the parts (N, r, c) of the result, and the rank of each matrix.
    """
    dtype = torch.bfloat16 if _multiplies_bfloat16(parts[0].device.type) else parts[0].dtype
    stacked = parts[0].new_empty((len(parts), *parts[0].shape), dtype=dtype)
    torch._foreach_copy_(list(stacked.unbind()), parts)
    whole = group_of(like) is None
    matrices = stacked if whole else parts_to_matrices(stacked, like)
    changes, rank = _orthogonalized_blocks(matrices.mT if dimension else matrices, steps, block_size)
    changes = changes.mT if dimension else changes
    return changes if whole else matrices_to_parts(changes, len(parts), like), rank


def _orthogonalized_blocks(matrices: Tensor, steps: int, block_size: int | None) -> tuple[Tensor, int]:
    """Return matrices (N, rows, cols) with each block of rows orthogonalized, and the blocks' rank in all."""
    number, rows, cols = matrices.shape
    if block_size is None or rows <= block_size:
        return orthogonalize(matrices, steps), min(rows, cols)
    size = min(block_size, cols)
    padded = pad(matrices, (0, 0, 0, -rows % size))  # with rows of zeros, which stay zero
    changes = orthogonalize(padded.reshape(-1, size, cols), steps).reshape(number, -1, cols)
    return changes[:, :rows], rows


@cache
def _multiplies_bfloat16(device_type: str) -> bool:
    """Return whether the device multiplies matrices faster in bfloat16, which is precise enough for the iteration."""
    if device_type == "cpu":
        return any(torch.cpu.get_capabilities().get(name, False) for name in ("amx_bf16", "avx512_bf16"))
    return True
