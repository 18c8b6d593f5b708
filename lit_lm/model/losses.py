"""Cross-entropy, and the chunked form used in training, which never holds all logits in memory.

Shapes: N positions, n positions of a chunk, D hidden size, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

IGNORE_INDEX = -100
"""Targets with this value are ignored, as in PyTorch."""

CHUNK_BYTES = 64 * 2**20
"""Size of the logits that `linear_cross_entropy` holds at a time, in the data type of the matrix product."""

ChunkLoss = Callable[[Tensor, Tensor, Tensor, Tensor, float, bool, ProcessGroup | None], tuple[Tensor, Tensor | None]]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log softmax(logits)[target] in nats over all targets except IGNORE_INDEX; 0 if there are none.

    logits (N, V), targets (N) -> scalar in float32.
    """
    logits = logits.float()
    counted = targets != IGNORE_INDEX
    target_logits = logits.gather(1, targets.clamp(min=0).unsqueeze(1)).squeeze(1)
    losses = _logsumexp(logits) - target_logits
    return torch.where(counted, losses, 0).sum() / counted.sum().clamp(min=1)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    z_loss: float = 0.0,
    compiled: bool = False,
    group: ProcessGroup | None = None,
) -> Tensor:
    """`cross_entropy(hidden @ weight.T, targets)`, computed in chunks of positions.

    hidden (N, D), weight (V, D), targets (N) -> scalar in float32. Gradients are computed together with the loss of
    each chunk, so that neither the logits nor their gradient exist for all positions at once: at V = 50,257 and 8,192
    positions this saves 3 GB.

    Args:
        hidden: Input of the head.
        weight: Weight of the head.
        targets: Token ids, or IGNORE_INDEX.
        z_loss: Coefficient of an added term, the mean of logsumexp(logits)^2, which keeps the logits from drifting
            (Chowdhery et al. 2022, section 5).
        compiled: Compile the elementwise operations with torch.compile; pays off after a few hundred calls.
        group: Processes with the same `hidden` and `targets`, each of which holds an equal number of rows of the
            weight, in order, and computes the logits of these; they also share the gradient of `hidden`. None: `weight`
            is whole.
    """
    with_gradients = torch.is_grad_enabled()  # always False inside `forward`
    chunk_loss = _compiled_chunk_loss() if compiled and group is None else _chunk_loss
    device_type, dtype = hidden.device.type, hidden.dtype
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
    if dtype == torch.float16:
        dtype = torch.float32  # the gradient is a softmax divided by N, most of which float16 rounds to zero
    with torch.autocast(device_type, enabled=False):
        return _LinearCrossEntropy.apply(hidden, weight, targets, z_loss, with_gradients, chunk_loss, group, dtype)  # type: ignore[no-any-return, no-untyped-call]


def _logsumexp(logits: Tensor) -> Tensor:
    highest = logits.amax(dim=-1, keepdim=True)  # subtracted so that exp cannot overflow
    return (logits - highest).exp().sum(dim=-1).log() + highest.squeeze(-1)


def _chunk_loss(
    logits: Tensor,
    columns: Tensor,
    scale: Tensor,
    own_scale: Tensor,
    z_loss: float,
    with_gradient: bool,
    group: ProcessGroup | None,
) -> tuple[Tensor, Tensor | None]:
    """Loss of a chunk of logits (n, V), weighted by scale (n, 1), and its gradient without the one-hot term.

    The full gradient is (softmax (1 + 2 z_loss logsumexp) - onehot) * scale. The caller subtracts own_scale at the
    targets' columns (n, 1): done here, it would cost a compiled function another pass over the logits. own_scale (n, 1)
    is scale, but zero where the target is among the logits of another process of the group.
    """
    highest = logits.amax(dim=-1, keepdim=True).float()
    target_logits = logits.gather(1, columns).float()
    exp = logits.float().sub_(highest).exp_()
    total = exp.sum(dim=-1, keepdim=True)
    logsumexp = total.log() + highest
    if group is not None:
        logsumexp, target_logits = _of_group(logsumexp, target_logits * (own_scale > 0), group)
        total = (logsumexp - highest).exp()
    losses = logsumexp - target_logits
    if z_loss:
        losses = losses + z_loss * logsumexp.square()
    gradient = None
    if with_gradient:
        factor = scale * (1 + 2 * z_loss * logsumexp) if z_loss else scale
        gradient = exp.mul_(factor / total).to(logits.dtype)
    return (losses * scale).sum(), gradient


def _of_group(logsumexp: Tensor, target_logits: Tensor, group: ProcessGroup) -> tuple[Tensor, Tensor]:
    """Return logsumexp (n, 1) of the logits of all processes, and the sum (n, 1) of their target_logits."""
    own = torch.cat([logsumexp, target_logits], dim=1)
    gathered = [torch.empty_like(own) for _ in range(group.size())]
    dist.all_gather(gathered, own, group=group)
    parts = torch.stack(gathered)  # (P, n, 2)
    return parts[:, :, :1].logsumexp(dim=0), parts[:, :, 1:].sum(dim=0)


@cache
def _compiled_chunk_loss() -> ChunkLoss:
    return torch.compile(_chunk_loss, dynamic=True)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        z_loss: float,
        with_gradients: bool,
        chunk_loss: ChunkLoss,
        group: ProcessGroup | None,
        dtype: torch.dtype,
    ) -> Tensor:
        inputs, matrix = hidden.to(dtype), weight.to(dtype)
        counted = (targets != IGNORE_INDEX).unsqueeze(1)
        scale = counted.float() / counted.sum().clamp(min=1)  # (N, 1): each position's weight in the mean
        columns, own_scale = targets.clamp(min=0).unsqueeze(1), scale  # (N, 1)
        if group is not None:
            own_scale = scale * (columns // len(weight) == group.rank())
            columns = columns % len(weight)
        loss = hidden.new_zeros((), dtype=torch.float32)
        needs_gradient = with_gradients and (ctx.needs_input_grad[0] or ctx.needs_input_grad[1])
        hidden_dtype = torch.promote_types(hidden.dtype, dtype)
        hidden_gradient = torch.empty_like(hidden, dtype=hidden_dtype) if needs_gradient else None
        weight_gradient = torch.zeros_like(weight) if needs_gradient else None
        num_chunks = math.ceil(len(hidden) * len(weight) * dtype.itemsize / CHUNK_BYTES)
        for part in _parts(len(hidden), num_chunks):
            part_loss, gradient = chunk_loss(
                inputs[part] @ matrix.T, columns[part], scale[part], own_scale[part], z_loss, needs_gradient, group
            )
            loss += part_loss
            if gradient is None or hidden_gradient is None or weight_gradient is None:
                continue
            rows = torch.arange(len(gradient), device=gradient.device)
            gradient[rows, columns[part, 0]] -= own_scale[part, 0].to(dtype)  # scatter_add_ would copy a bfloat16 chunk
            hidden_gradient[part] = gradient @ matrix
            if dtype == weight.dtype:
                torch.addmm(weight_gradient, gradient.T, inputs[part], out=weight_gradient)
            else:
                weight_gradient.add_(gradient.T @ inputs[part])
        if group is not None and hidden_gradient is not None:
            dist.all_reduce(hidden_gradient, group=group)
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        (gradient,) = gradients
        return hidden_gradient.mul_(gradient), weight_gradient.mul_(gradient), None, None, None, None, None, None


def _parts(length: int, number: int) -> Iterator[slice]:
    """About `number` slices that cover `length` positions, all of equal size except the last."""
    size = math.ceil(length / number)
    return (slice(start, start + size) for start in range(0, length, size))


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """Bits needed to encode one byte of text, from the mean loss per token in nats.

    Comparable between tokenizers, unlike loss and perplexity.
    """
    return loss / math.log(2) / bytes_per_token


def perplexity(loss: float) -> float:
    """exp(loss), or infinity if that overflows."""
    return math.exp(loss) if loss < 700 else math.inf
