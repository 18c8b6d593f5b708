"""The layers of a Transformer, written out as tensor operations.

Each layer takes plain numbers, never a config, and only holds its parameters; `lit_lm.model.transformer.init_weights`
initializes them. Each is tested against PyTorch's own. Shapes: B batch, H query heads, G key/value heads, T queries,
S keys, K head size; `...` is any number of leading dimensions.
"""

import math
from typing import Any

import torch
from torch import Tensor, library, nn
from torch.autograd.function import once_differentiable


class Linear(nn.Module):
    """x W^T + b, for x (..., d_in) -> (..., d_out)."""

    def __init__(self, d_in: int, d_out: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        self.bias = nn.Parameter(torch.empty(d_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight.T
        return y if self.bias is None else y + self.bias.to(y.dtype)


class Embedding(nn.Module):
    """`weight[ids]`: ids (...) -> (..., d)."""

    def __init__(self, num_embeddings: int, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_embeddings, d))

    def forward(self, ids: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            rows: Tensor = _SelectRows.apply(self.weight, ids.flatten())  # type: ignore[no-untyped-call]
        else:
            rows = self.weight.index_select(0, ids.flatten())
        return rows.view(*ids.shape, -1)


class _SelectRows(torch.autograd.Function):
    """`weight.index_select(0, ids)` whose gradient is the same every time when it is compiled."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.num_rows = len(weight)
        return weight.index_select(0, ids)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        return _add_rows(gradients[0].contiguous(), ids, ctx.num_rows), None


@library.custom_op("lit_lm::add_rows", mutates_args=())
def _add_rows(rows: Tensor, ids: Tensor, num_rows: int) -> Tensor:
    """Sums (num_rows, d) of the rows (n, d) of each of ids (n).

    An operator of its own, because the compiler would let several threads add to a row, in any order.
    """
    return rows.new_zeros(num_rows, rows.shape[1]).index_add_(0, ids, rows)


@_add_rows.register_fake
def _(rows: Tensor, ids: Tensor, num_rows: int) -> Tensor:
    return rows.new_empty(num_rows, rows.shape[1])


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, computed in float32 (Zhang and Sennrich 2019)."""

    def __init__(self, d: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, computed in float32."""
    return _RMSNorm.apply(x, weight, eps)  # type: ignore[no-any-return, no-untyped-call]


class _RMSNorm(torch.autograd.Function):
    """Saves only its inputs and 1 / rms(x) for the backward pass; autograd would save every intermediate result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x32 = x.float()
        inverse = torch.rsqrt(x32.square().mean(dim=-1, keepdim=True) + eps)  # (..., 1)
        ctx.save_for_backward(x, weight, inverse)
        return (x32 * inverse).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        gradient = gradients[0].float()
        normed = x.float() * inverse
        of_weight = (gradient * normed).sum_to_size(weight.shape)
        gradient = gradient * weight  # with respect to normed
        along = (gradient * normed).mean(dim=-1, keepdim=True)  # rescaling x does not change normed
        of_x = gradient.sub_(normed * along).mul_(inverse)
        return of_x.to(x.dtype), of_weight, None


class LayerNorm(nn.Module):
    """(x - mean) / std * weight + bias over the last dimension, computed in float32 (Ba et al. 2016)."""

    def __init__(self, d: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d))
        self.bias = nn.Parameter(torch.empty(d)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        centered = x32 - x32.mean(dim=-1, keepdim=True)
        normed = centered * torch.rsqrt(centered.square().mean(dim=-1, keepdim=True) + self.eps)
        scaled = normed * self.weight
        return (scaled if self.bias is None else scaled + self.bias).to(x.dtype)


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    return x * torch.sigmoid(x)


def gelu(x: Tensor) -> Tensor:
    """GELU with the tanh approximation, as in GPT-2 (Hendrycks and Gimpel 2016)."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x.pow(3))))


def gelu_erf(x: Tensor) -> Tensor:
    """x * (probability that a normal variable is below x): GELU without approximation (Hendrycks and Gimpel 2016)."""
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, as in the Llama family (Shazeer 2020)."""
    return _SwiGLU.apply(gate, up)  # type: ignore[no-any-return, no-untyped-call]


class _SwiGLU(torch.autograd.Function):
    """Saves only its inputs for the backward pass; autograd would save two more tensors of their size."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        (gradient,) = gradients
        share = torch.sigmoid(gate)
        activated = gate * share
        slope = activated + share * (1 - activated)  # silu's derivative
        return slope.mul_(up).mul_(gradient), activated.mul_(gradient)


def rope_table(context_length: int, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin (T, K) of the rotary angles (Su et al. 2021), with T = context_length.

    Dimensions i and i + K/2 are rotated as a pair by position * theta^(-2i/K): the half-split layout of the Llama
    checkpoints on Hugging Face, not the interleaved one of the paper.
    """
    frequencies = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)  # (K/2)
    angles = torch.outer(torch.arange(context_length, dtype=torch.float32), frequencies)  # (T, K/2)
    angles = torch.cat([angles, angles], dim=-1)  # (T, K)
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys x (B, H, T, K) rotated by rows cos, sin (T, K) of `rope_table`."""
    first, second = x.chunk(2, dim=-1)
    rotated = torch.cat([-second, first], dim=-1)
    return (x * cos + rotated * sin).to(x.dtype)


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """exp(x) / sum(exp(x)) over a dimension; the maximum is subtracted first so that exp cannot overflow."""
    exp = torch.exp(x - x.amax(dim=dim, keepdim=True))
    return exp / exp.sum(dim=dim, keepdim=True)


def causal_mask(positions: Tensor, num_keys: int) -> Tensor:
    """Mask (..., T, S) for queries at positions (..., T): True for keys at the same or an earlier position."""
    return torch.arange(num_keys, device=positions.device) <= positions.unsqueeze(-1)


def document_indices(ids: Tensor, end_id: int) -> Tensor:
    """Index (B, T) of the document of each of ids (B, T) in its row.

    END_OF_TEXT counts as the first token of the document after it: generation starts a document from END_OF_TEXT
    alone, so training must not show the previous document either.
    """
    return (ids == end_id).cumsum(dim=1)


def document_starts(documents: Tensor) -> Tensor:
    """Position (B, T) of the first token of each token's document.

    documents (B, T) holds the document number of each token, non-decreasing in each row.
    """
    return torch.searchsorted(documents, documents)


def document_mask(starts: Tensor) -> Tensor:
    """Mask (B, 1, T, T), True for keys at positions from starts (B, T) to that of the query."""
    positions = torch.arange(starts.shape[1], device=starts.device)
    return (positions >= starts.unsqueeze(-1)).tril().unsqueeze(1)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(K)) v (Vaswani et al. 2017).

    q is (B, H, T, K); k and v are (B, G, S, K), where G divides H: each key/value head serves H/G query heads (Ainslie
    et al. 2023). mask (T, S) is True for the keys that a query attends to. This is a reference implementation that
    holds all T x S scores in memory; `Attention` calls the fused `scaled_dot_product_attention` instead.
    """
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)  # (B, H, S, K)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, T, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return softmax(scores) @ v  # (B, H, T, K)
