"""Gradient descent at a falling rate: the step as a pure function, under a thin class."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lit_lm.optim.fused import check_rates


@torch.no_grad()
def sgd_decay_step(
    parameters: list[Tensor], gradients: list[Tensor], *, step: int, lr: float, weight_decay: float
) -> None:
    """One update number `step` (from 1) of gradient descent at the rate lr / sqrt(step), in place."""
    rate = lr / math.sqrt(step)
    if weight_decay:
        torch._foreach_mul_(parameters, 1 - rate * weight_decay)
    torch._foreach_add_(parameters, gradients, alpha=-rate)


class SGDDecay(Optimizer):
    """Gradient descent whose rate falls as lr / sqrt(t + 1), t counting the updates from 0."""

    def __init__(
        self, params: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float = 0.1, weight_decay: float = 0.0
    ) -> None:
        """
        Args:
            params: Parameters or groups of them.
            lr: Learning rate of the first update.
            weight_decay: Share of the rate by which weights shrink at each step.

        Raises:
            ValueError: if a value is out of range.
        """
        check_rates(lr, weight_decay)
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters; `closure`, if given, computes loss and gradients first."""
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
                    equals, [p.grad for p in equals], step=step, lr=group["lr"], weight_decay=group["weight_decay"]
                )
        return loss


def _by_step(parameters: list[Any], state: dict[Tensor, Any]) -> Iterable[tuple[int, list[Any]]]:
    """The parameters together that had equally many updates: one that got no gradient in some step is behind."""
    equals: dict[int, list[Any]] = defaultdict(list)
    for parameter in parameters:
        equals[state[parameter]["step"]].append(parameter)
    return equals.items()
