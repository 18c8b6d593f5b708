"""Gradient descent with a decaying learning rate: a step function and a thin class around it."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lit_lm.optim.fused import check_rates
from lit_lm.optim.sharded import local_parts


@torch.no_grad()
def sgd_decay_step(
    parameters: list[Tensor], gradients: list[Tensor], *, step: int, lr: float, weight_decay: float
) -> None:
    """Apply update `step`, counted from 1, of gradient descent with learning rate lr / sqrt(step), in place."""
    rate = lr / math.sqrt(step)
    if weight_decay:
        torch._foreach_mul_(parameters, 1 - rate * weight_decay)
    torch._foreach_add_(parameters, gradients, alpha=-rate)


class SGDDecay(Optimizer):
    """Gradient descent with learning rate lr / sqrt(t + 1) at update t, counted from 0."""

    def __init__(
        self, params: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float = 0.1, weight_decay: float = 0.0
    ) -> None:
        """
        Args:
            params: Parameters or parameter groups.
            lr: Learning rate of the first update.
            weight_decay: Weight decay coefficient, multiplied by the learning rate.

        Raises:
            ValueError: if a value is out of range.
        """
        check_rates(lr, weight_decay)
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters; `closure`, if given, computes the loss and gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for parameter in parameters:
                self.state[parameter]["step"] = self.state[parameter].get("step", 0) + 1
            for step, equals in _by_step(parameters, self.state):
                sgd_decay_step(
                    local_parts(equals),
                    local_parts(p.grad for p in equals),
                    step=step,
                    lr=group["lr"],
                    weight_decay=group["weight_decay"],
                )
        return loss


def _by_step(parameters: list[Any], state: dict[Tensor, Any]) -> Iterable[tuple[int, list[Any]]]:
    """Group parameters by their number of updates: a parameter without a gradient misses an update."""
    equals: dict[int, list[Any]] = defaultdict(list)
    for parameter in parameters:
        equals[state[parameter]["step"]].append(parameter)
    return equals.items()
