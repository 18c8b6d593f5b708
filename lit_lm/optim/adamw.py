"""AdamW: a step function and a thin class around it."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lit_lm.optim.fused import FusedOptimizer, check_rates
from lit_lm.optim.sharded import local_parts


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
    """Apply one AdamW update (Loshchilov and Hutter 2019, algorithm 2) in place, in one pass over memory.

    steps counts the updates of each parameter, in float32 scalars on its device. Weight decay is decoupled from the
    gradient and scaled by lr, as in PyTorch: p <- p - lr * (weight_decay * p + m / (sqrt(v) + eps)), where m and v are
    bias-corrected. Gradients are first divided by grad_scale; nothing is updated if found_inf is 1. The kernel is
    PyTorch's: the same in tensor operations takes five times as long on a CPU.
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


class AdamW(FusedOptimizer):
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
            params: Parameters or parameter groups.
            lr: Peak learning rate.
            betas: Decay rates of the running averages of the gradient and its square.
            eps: Added to the denominator.
            weight_decay: Weight decay coefficient, multiplied by lr.

        Raises:
            ValueError: if a value is out of range.
        """
        check_rates(lr, weight_decay)
        if eps < 0:
            raise ValueError(f"eps is {eps}; it must be at least 0")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are {betas}; each must be at least 0 and less than 1")
        # `fused` makes load_state_dict move the steps to the parameters' device
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "fused": True})

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
            local_parts(parameters),
            local_parts(p.grad for p in parameters),
            local_parts(state["exp_avg"] for state in states),
            local_parts(state["exp_avg_sq"] for state in states),
            [state["step"] for state in states],
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            grad_scale=self.grad_scale,
            found_inf=self.found_inf,
        )
