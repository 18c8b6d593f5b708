"""Optimizers as pure step functions under thin classes, and the parameter groups that training gives them."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Two groups for an optimizer: weight decay for matrices and embeddings, none for norms and biases.

    Every parameter is in exactly one; a tensor shared by two layers counts once. The flags `hidden` of the first group
    say which of its parameters are matrices of the blocks, from one hidden vector to another: Muon's.
    """
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    decayed = {name: p for name, p in named.items() if p.ndim >= 2}
    exempt = [p for p in named.values() if p.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": list(decayed.values()), "hidden": [name.startswith("blocks.") for name in decayed]},
        {"params": exempt, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def keep_options(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A saved optimizer state, but with the options of `optimizer` itself, which the config may have changed since.

    For `Optimizer.register_load_state_dict_pre_hook`. The present learning rate is then the schedule's to find.
    """
    groups = [
        {**saved, **{name: value for name, value in own.items() if name != "params"}}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    entries = state["state"]
    if isinstance(optimizer, SweepOptimizer):  # older checkpoints count the steps in plain numbers
        entries = {
            key: entry | {"step": torch.as_tensor(entry["step"], dtype=torch.float32)} if "step" in entry else entry
            for key, entry in entries.items()
        }
    return {**state, "param_groups": groups, "state": entries}


@torch.no_grad()
def adamw_step(
    parameters: list[Tensor],
    gradients: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One update of AdamW (Loshchilov and Hutter 2019, algorithm 2), in place and in one sweep over memory.

    steps count the updates of each parameter, as float32 scalars on its device. Decay is decoupled from the gradient
    and scaled by lr, as in torch: p <- p - lr * (weight_decay * p + m / (sqrt(v) + eps)), with m and v corrected for
    their start at zero. Gradients are divided by grad_scale first; nothing is updated if found_inf is 1. The kernel is
    torch's: written out in tensor operations the same takes five times as long on a CPU.
    """
    if not parameters:
        return
    torch._foreach_add_(steps, 1)
    torch._fused_adamw_(
        parameters, gradients, exp_avgs, exp_avg_sqs, [], steps,
        lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay,
        amsgrad=False, maximize=False, grad_scale=grad_scale, found_inf=found_inf,
    )  # fmt: skip
    if found_inf is not None:
        torch._foreach_sub_(steps, [found_inf] * len(steps))


@torch.no_grad()
def sgd_decay_step(
    parameters: list[Tensor], gradients: list[Tensor], *, step: int, lr: float, weight_decay: float
) -> None:
    """One update number `step` (from 1) of gradient descent at the rate lr / sqrt(step), in place."""
    rate = lr / math.sqrt(step)
    if weight_decay:
        torch._foreach_mul_(parameters, 1 - rate * weight_decay)
    torch._foreach_add_(parameters, gradients, alpha=-rate)


class SweepOptimizer(Optimizer):
    """An optimizer that clips and skips within its update, so that the host need not know what the gradient was."""

    grad_scale: Tensor | None = None
    """Scalar on the device; the next step divides gradients by it."""
    found_inf: Tensor | None = None
    """Scalar on the device; if it is 1 the next step changes nothing."""


class AdamW(SweepOptimizer):
    """Adam with decoupled weight decay."""

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ) -> None:
        """
        Args:
            params: Parameters or groups of them.
            lr: Peak learning rate.
            betas: Decay rates of the averages of the gradient and of its square.
            eps: Added to the denominator.
            weight_decay: Share of lr by which weights shrink at each step.

        Raises:
            ValueError: if a value is out of range.
        """
        _check_rates(lr, weight_decay)
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are {betas}; each must be at least 0 and less than 1")
        # torch looks at `fused` to know that a loaded state's steps belong on the parameters' device
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "fused": True})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters; `closure`, if given, computes loss and gradients first."""
        loss = _call(closure)
        for group in self.param_groups:
            self.update(group)
        return loss

    def update(self, group: dict[str, Any]) -> None:
        """Update the parameters of one group."""
        parameters = [p for p in group["params"] if p.grad is not None]
        states = [self.state[p] for p in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        adamw_step(
            parameters,
            [p.grad for p in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["step"] for state in states],
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            grad_scale=self.grad_scale,
            found_inf=self.found_inf,
        )


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
        _check_rates(lr, weight_decay)
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters; `closure`, if given, computes loss and gradients first."""
        loss = _call(closure)
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


def _check_rates(lr: float, weight_decay: float) -> None:
    if lr < 0:
        raise ValueError(f"lr is {lr}; it must be at least 0")
    if weight_decay < 0:
        raise ValueError(f"weight_decay is {weight_decay}; it must be at least 0")


def _call(closure: Callable[[], float] | None) -> float | None:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
