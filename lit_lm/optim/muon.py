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
    steps: list[int],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    newton_schulz_steps: int,
    period: int,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """Apply one Muon update with Nesterov momentum in place; weight_decay, grad_scale, found_inf as in `adamw_step`.

    Every step updates all averages, and scales the gradients in place, as torch's fused optimizers do. The parameters
    take turns: each is changed in one of `period` steps, with `period` times lr. steps are the numbers of earlier steps
    of each.

    The orthogonalized update is scaled by max(1, sqrt(rows / cols)) (Jordan et al. 2024), and by nothing that grows
    with the model: it changes a hidden vector by the same fraction at every width, so one lr suits all widths.

    If the parameters are sharded, each process orthogonalizes its share of the matrices.
    """
    weights, averages, matrices = (local_parts(tensors) for tensors in (parameters, momenta, gradients))
    if grad_scale is not None:
        torch._foreach_div_(matrices, grad_scale)
    if found_inf is not None:  # leaves the averages unchanged
        for average, matrix in zip(averages, matrices, strict=True):
            torch.where(found_inf.bool(), average, matrix, out=matrix)
    torch._foreach_lerp_(averages, matrices, 1 - momentum)
    lr *= period
    decay = lr * weight_decay if found_inf is None else lr * weight_decay * (1 - found_inf)
    due = [number for number, step in enumerate(steps) if (number + step) % period == 0]
    for numbers in _alike(parameters, due):
        like = parameters[numbers[0]]
        rows, cols = like.shape
        directions = torch._foreach_lerp([matrices[n] for n in numbers], [averages[n] for n in numbers], momentum)
        changes = _orthogonalized(list(directions), like, newton_schulz_steps)
        if found_inf is not None:
            changes.mul_(1 - found_inf)
        changed = [weights[n] for n in numbers]
        if weight_decay:
            torch._foreach_mul_(changed, 1 - decay)
        torch._foreach_add_(changed, list(changes.unbind()), alpha=-lr * max(1, rows / cols) ** 0.5)


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
        period: int = 4,
    ) -> None:
        """
        Args:
            params: Parameters or parameter groups. A group's `muon` tells of each parameter whether it is a hidden
                matrix; without it, all matrices are.
            lr: Peak learning rate of hidden matrices (Muon).
            adamw_lr: Peak learning rate of all other parameters (AdamW).
            momentum: Decay rate of the running average of the gradient, for Muon.
            betas: Decay rates of the running averages of the gradient and its square, for AdamW.
            eps: Added to the denominator, for AdamW.
            weight_decay: Weight decay coefficient, multiplied by the learning rate.
            newton_schulz_steps: Number of iterations that orthogonalize an update.
            period: Number of steps in which each hidden matrix is changed once, with `period` times lr; the matrices
                take turns. 1: all in every step, as in the paper. 4 takes a quarter of the time, and models learn as
                much (docs/learning.md).

        Raises:
            ValueError: if a value is out of range.
        """
        if adamw_lr < 0:
            raise ValueError(f"adamw_lr is {adamw_lr}; it must be at least 0")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}; it must be at least 0 and less than 1")
        if newton_schulz_steps < 1:
            raise ValueError(f"newton_schulz_steps is {newton_schulz_steps}; it must be at least 1")
        if period < 1:
            raise ValueError(f"period is {period}; it must be at least 1")
        self.momentum, self.newton_schulz_steps = momentum, newton_schulz_steps
        super().__init__(_split(params, adamw_lr, period), lr, betas, eps, weight_decay)

    def update(self, group: dict[str, Any]) -> None:
        """Update the parameters of one group."""
        if not group["muon"]:
            super().update(group)
            return
        parameters = [p for p in group["params"] if p.grad is not None]
        states = [self.state[p] for p in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                state["step"] = 0
                state["momentum"] = torch.zeros_like(parameter)
        muon_step(
            parameters,
            [p.grad for p in parameters],
            [state["momentum"] for state in states],
            [state["step"] for state in states],
            lr=group["lr"],
            momentum=self.momentum,
            weight_decay=group["weight_decay"],
            newton_schulz_steps=self.newton_schulz_steps,
            period=group["period"],
            grad_scale=self.grad_scale,
            found_inf=self.found_inf,
        )
        for state in states:
            state["step"] += 1


def _split(params: Iterable[Tensor] | Iterable[dict[str, Any]], adamw_lr: float, period: int) -> list[dict[str, Any]]:
    """Split each group in two: hidden matrices for Muon, then the other parameters for AdamW."""
    given: list[Any] = list(params)
    groups: list[dict[str, Any]] = []
    for group in given if given and isinstance(given[0], dict) else [{"params": given}]:
        parameters = list(group["params"])
        options = {name: value for name, value in group.items() if name not in ("params", "muon")}
        muon: list[Tensor] = []
        rest: list[Tensor] = []
        for parameter, is_hidden in zip(parameters, group.get("muon", [True] * len(parameters)), strict=True):
            (muon if is_hidden and parameter.ndim == 2 else rest).append(parameter)
        if muon:
            groups.append({**options, "params": muon, "muon": True, "period": period})
        if rest:
            groups.append({"lr": adamw_lr, **options, "params": rest, "muon": False})
    return groups


def _alike(parameters: list[Tensor], numbers: list[int]) -> Iterable[list[int]]:
    """Group the numbers of parameters by their shapes and, of sharded ones, how they are shared out."""
    found = defaultdict(list)
    for number in numbers:
        parameter = parameters[number]
        found[parameter.shape, getattr(parameter, "placements", None)].append(number)
    return found.values()


def _orthogonalized(parts: list[Tensor], like: Any, steps: int) -> Tensor:
    """Orthogonalize N matrices that are sharded as `like`, or not, of which this process holds parts (r, c).

    Returns the parts (N, r, c) of the result.
    """
    dtype = torch.bfloat16 if _multiplies_bfloat16(parts[0].device.type) else parts[0].dtype
    stacked = parts[0].new_empty((len(parts), *parts[0].shape), dtype=dtype)
    torch._foreach_copy_(list(stacked.unbind()), parts)
    if group_of(like) is None:
        return orthogonalize(stacked, steps)
    return matrices_to_parts(orthogonalize(parts_to_matrices(stacked, like), steps), len(parts), like)


@cache
def _multiplies_bfloat16(device_type: str) -> bool:
    """Return whether the device multiplies matrices faster in bfloat16, which is precise enough for the iteration."""
    if device_type == "cpu":
        return any(torch.cpu.get_capabilities().get(name, False) for name in ("amx_bf16", "avx512_bf16"))
    return True
