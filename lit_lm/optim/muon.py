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
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=EPS)  # all singular values are at most one
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


@torch.no_grad()
def muon_step(
    parameters: list[Tensor],
    gradients: list[Tensor],
    momenta: list[Tensor],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    newton_schulz_steps: int,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """Apply one Muon update with Nesterov momentum in place; weight_decay, grad_scale, found_inf as in `adamw_step`.

    The orthogonalized update is scaled by max(1, sqrt(rows / cols)) (Jordan et al. 2024), and by nothing that grows
    with the model: it changes a hidden vector by the same fraction at every width, so one lr suits all widths.
    """
    taken = 1.0 if found_inf is None else 1 - found_inf
    for numbers in _by_shape(parameters):
        weights, averages = ([each[number] for number in numbers] for each in (parameters, momenta))
        gradient = torch.stack([gradients[number] for number in numbers])  # (N, rows, cols)
        average = torch.stack(averages)
        if grad_scale is not None:
            gradient.div_(grad_scale)
        if found_inf is not None:
            gradient = torch.where(found_inf.bool(), average, gradient)  # leaves the average unchanged
        average.lerp_(gradient, 1 - momentum)
        torch._foreach_copy_(averages, list(average.unbind()))
        direction = gradient.lerp_(average, momentum)
        fast = torch.bfloat16 if _multiplies_bfloat16(direction.device.type) else direction.dtype
        change = orthogonalize(direction.to(fast), newton_schulz_steps).to(direction.dtype)
        change.mul_(-lr * max(1, change.shape[1] / change.shape[2]) ** 0.5 * taken)
        if weight_decay:
            torch._foreach_mul_(weights, 1 - lr * weight_decay * taken)
        torch._foreach_add_(weights, list(change.unbind()))


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
    ) -> None:
        """
        Args:
            params: Parameters or parameter groups. A group's flags `muon` mark its hidden matrices; without flags,
                all matrices are hidden.
            lr: Peak learning rate of hidden matrices (Muon).
            adamw_lr: Peak learning rate of all other parameters (AdamW).
            momentum: Decay rate of the running average of the gradient, for Muon.
            betas: Decay rates of the running averages of the gradient and its square, for AdamW.
            eps: Added to the denominator, for AdamW.
            weight_decay: Weight decay coefficient, multiplied by the learning rate.
            newton_schulz_steps: Number of iterations that orthogonalize an update.

        Raises:
            ValueError: if a value is out of range.
        """
        if adamw_lr < 0:
            raise ValueError(f"adamw_lr is {adamw_lr}; it must be at least 0")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}; it must be at least 0 and less than 1")
        if newton_schulz_steps < 1:
            raise ValueError(f"newton_schulz_steps is {newton_schulz_steps}; it must be at least 1")
        self.momentum, self.newton_schulz_steps = momentum, newton_schulz_steps
        super().__init__(list(_split(params, adamw_lr)), lr, betas, eps, weight_decay)

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
            lr=group["lr"],
            momentum=self.momentum,
            weight_decay=group["weight_decay"],
            newton_schulz_steps=self.newton_schulz_steps,
            grad_scale=self.grad_scale,
            found_inf=self.found_inf,
        )


def _split(params: Iterable[Tensor] | Iterable[dict[str, Any]], adamw_lr: float) -> Iterable[dict[str, Any]]:
    """Split each group in two: hidden matrices for Muon, then the other parameters for AdamW."""
    given: list[Any] = list(params)
    for group in given if given and isinstance(given[0], dict) else [{"params": given}]:
        parameters = list(group["params"])
        flags = group.get("muon", [True] * len(parameters))
        options = {name: value for name, value in group.items() if name not in ("params", "muon")}
        muon = [p for p, flag in zip(parameters, flags, strict=True) if flag and p.ndim == 2]
        ids = {id(p) for p in muon}
        rest = [p for p in parameters if id(p) not in ids]
        if muon:
            yield {**options, "params": muon, "muon": True}
        if rest:
            yield {"lr": adamw_lr, **options, "params": rest, "muon": False}


def _by_shape(parameters: list[Tensor]) -> Iterable[list[int]]:
    """Return the indices of the parameters of each shape."""
    numbers = defaultdict(list)
    for number, parameter in enumerate(parameters):
        numbers[parameter.shape].append(number)
    return numbers.values()


@cache
def _multiplies_bfloat16(device_type: str) -> bool:
    """Return whether the device multiplies matrices faster in bfloat16, which is precise enough for the iteration."""
    if device_type == "cpu":
        return any(torch.cpu.get_capabilities().get(name, False) for name in ("amx_bf16", "avx512_bf16"))
    return True
