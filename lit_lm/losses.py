"""Cross-entropy from scratch, and the form that training uses, which never holds all logits.

Shapes: N positions, D width of the hidden state, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORE_INDEX = -100
"""A target with this value counts for nothing, as in torch."""

CHUNK_BYTES = 64 * 2**20
"""Float32 logits that `linear_cross_entropy` holds at a time."""


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log softmax(logits)[target] in nats over the targets that are not IGNORE_INDEX; 0 if all are.

    logits (N, V), targets (N) -> scalar in float32.
    """
    logits = logits.float()
    counted = targets != IGNORE_INDEX
    target_logits = logits.gather(1, targets.clamp(min=0).unsqueeze(1)).squeeze(1)
    losses = _log_sum_exp(logits) - target_logits
    return torch.where(counted, losses, 0).sum() / counted.sum().clamp(min=1)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """`cross_entropy(hidden @ weight.T, targets)` in a few chunks of positions.

    hidden (N, D), weight (V, D), targets (N) -> scalar in float32. The gradients are computed together with the loss
    while a chunk's logits are at hand, so that neither logits nor their gradient ever exist for all positions: at
    V = 50,257 and 8,192 positions that saves 3 GB.
    """
    with_gradients = torch.is_grad_enabled()  # inside of `forward` it never is
    return _LinearCrossEntropy.apply(hidden, weight, targets, with_gradients)  # type: ignore[no-any-return, no-untyped-call]


def _log_sum_exp(logits: Tensor) -> Tensor:
    highest = logits.amax(dim=-1, keepdim=True)  # taken off so that exp cannot overflow
    return (logits - highest).exp().sum(dim=-1).log() + highest.squeeze(-1)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, with_gradients: bool) -> Tensor:
        dtype = hidden.dtype
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
        inputs, matrix = hidden.to(dtype), weight.to(dtype)
        counted = targets != IGNORE_INDEX
        scale = counted.float() / counted.sum().clamp(min=1)  # (N): each position's share of the mean
        columns = targets.clamp(min=0).unsqueeze(1)  # (N, 1)
        loss = hidden.new_zeros((), dtype=torch.float32)
        needs_gradient = with_gradients and (ctx.needs_input_grad[0] or ctx.needs_input_grad[1])
        hidden_gradient = torch.empty_like(hidden) if needs_gradient else None
        weight_gradient = torch.zeros_like(weight) if needs_gradient else None
        chunk = max(1, CHUNK_BYTES // (4 * len(weight)))
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = (inputs[part] @ matrix.T).float()  # (n, V)
            highest = logits.amax(dim=-1, keepdim=True)
            target_logits = logits.gather(1, columns[part]) - highest
            exp = logits.sub_(highest).exp_()
            total = exp.sum(dim=-1, keepdim=True)
            loss += ((total.log() - target_logits).squeeze(1) * scale[part]).sum()
            if hidden_gradient is not None and weight_gradient is not None:
                # d loss / d logits = (softmax - onehot) * scale
                gradient = exp.mul_((scale[part] / total.squeeze(1)).unsqueeze(1))
                gradient.scatter_add_(1, columns[part], -scale[part].unsqueeze(1))
                low = gradient.to(dtype)
                hidden_gradient[part] = low @ matrix
                weight_gradient += low.T @ inputs[part]
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        (gradient,) = gradients
        return hidden_gradient * gradient, weight_gradient * gradient, None, None
