"""Base class of the optimizers: gradient clipping and step skipping happen inside the update."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lit_lm.optim.sharded import local_parts


class FusedOptimizer(Optimizer, ABC):
    """An optimizer that clips and skips inside its update, so that the host need not read the gradient norm.

    A subclass implements `update`, which must apply `grad_scale` and `found_inf`.
    """

    grad_scale: Tensor | None = None
    """Scalar on the device; the next step divides the gradients by it. None: 1."""
    found_inf: Tensor | None = None
    """Scalar on the device; if 1, the next step changes nothing. None: 0."""

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters; `closure`, if given, computes the loss and gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self.update(group)
        return loss

    @abstractmethod
    def update(self, group: dict[str, Any]) -> None:
        """Update the parameters of one group that have a gradient."""


def clip_or_skip(optimizer: Optimizer, norm: Tensor, max_norm: float, is_finite: Tensor) -> None:
    """Make the next step of an optimizer clip the gradients, or change nothing.

    Args:
        optimizer: The optimizer. The host waits for the device unless this is a `FusedOptimizer`.
        norm: Norm of all gradients.
        max_norm: Norm to which larger gradients are scaled down; 0: none.
        is_finite: Whether to take the step.
    """
    if isinstance(optimizer, FusedOptimizer):
        optimizer.found_inf = (~is_finite).float()
        optimizer.grad_scale = (norm / max_norm).clamp(min=1.0) if max_norm else None
    elif not is_finite:
        optimizer.zero_grad(set_to_none=True)  # optimizers skip parameters without a gradient
    elif max_norm:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        torch._foreach_mul_(local_parts(gradients), (max_norm / (norm + 1e-6)).clamp(max=1.0))  # as torch.nn.utils


def check_rates(lr: float, weight_decay: float) -> None:
    """Check the rates.

    Raises:
        ValueError: if a rate is negative.
    """
    if lr < 0:
        raise ValueError(f"lr is {lr}; it must be at least 0")
    if weight_decay < 0:
        raise ValueError(f"weight_decay is {weight_decay}; it must be at least 0")
