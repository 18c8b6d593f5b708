"""A Transformer's weights laid out for decoding: fewer and larger matrices, in the type that they are kept in.

Shapes: D d_model, F feed-forward size, H query heads, G key/value heads, K head size, V vocabulary.
"""

import copy
import ctypes
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import linear

from lit_lm.model.layers import Embedding, LayerNorm, Linear, RMSNorm
from lit_lm.model.transformer import Transformer

Weights = Literal["float32", "bfloat16", "int8"]
"""What a weight is kept as; int8 with a float32 scale for each output."""


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 (rows, cols) and scale (rows) whose product is the weight, rounded to 127 steps either side of zero."""
    scale = weight.float().abs().amax(dim=1).clamp(min=1e-12) / 127
    return (weight.float() / scale.unsqueeze(1)).round().to(torch.int8), scale


def large(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Memory not yet written, in large pages if Linux grants them: it is read a tenth faster."""
    tensor = torch.empty(tuple(shape), dtype=dtype, device=device)
    page, huge = 2 << 20, 14  # MADV_HUGEPAGE
    start = -(-tensor.data_ptr() // page) * page
    size = (tensor.data_ptr() + tensor.nbytes - start) // page * page
    if sys.platform == "linux" and tensor.is_cpu and size > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), huge)  # advice: it may be declined
    return tensor


@dataclass(frozen=True)
class Matrix:
    """x (..., cols) -> x weight^T * scale + bias (..., rows), in the type of x."""

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None

    @classmethod
    def of(cls, layers: Sequence[Linear | Embedding], dtype: torch.dtype) -> "Matrix":
        """Layers that read the same x as one, their outputs one after the other: a copy."""
        weights = [layer.weight.detach() for layer in layers]
        weight = torch.cat(weights) if len(weights) > 1 else weights[0]
        biases = [bias.detach().float() for layer in layers if (bias := getattr(layer, "bias", None)) is not None]
        scale = None
        if dtype == torch.int8:
            weight, scale = quantize(weight)
        kept = large(weight.shape, dtype, weight.device).copy_(weight)
        return cls(kept, scale, torch.cat(biases) if biases else None)

    def __call__(self, x: Tensor) -> Tensor:
        y = linear(x, self.weight.to(x.dtype))
        if self.scale is not None:
            y = y * self.scale
        return (y if self.bias is None else y + self.bias).to(x.dtype)

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows (..., cols) of ids (...): an embedding."""
        x = self.weight[ids].to(dtype)
        return x if self.scale is None else (x * self.scale[ids].unsqueeze(-1)).to(dtype)


@dataclass(frozen=True)
class BlockWeights:
    """What a block computes with."""

    attention_norm: RMSNorm | LayerNorm
    q_norm: RMSNorm | None
    k_norm: RMSNorm | None
    qkv: Matrix
    """(HK + 2GK, D): queries, keys, values."""
    o: Matrix
    feed_forward_norm: RMSNorm | LayerNorm
    up: Matrix
    """(2F, D): gate and up, where the feed-forward is gated; else (F, D)."""
    down: Matrix


class DecoderWeights:
    """The weights of a whole Transformer, as they are now. Norms and learned positions stay float32."""

    def __init__(self, model: Transformer, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.embedding = Matrix.of([model.embedding], dtype)
        self.head = self.embedding if model.config.tie_embeddings else Matrix.of([model.head], dtype)
        self.positions = None if model.position_embedding is None else _float(model.position_embedding.weight)
        self.rope = None if self.positions is not None else (_float(model.rope_cos), _float(model.rope_sin))
        self.norm = _float_norm(model.norm)
        self.blocks = [_block(block, dtype) for block in model.blocks]

    @property
    def matrices(self) -> Iterator[Matrix]:
        """Each once."""
        yield self.embedding
        if self.head is not self.embedding:
            yield self.head
        for block in self.blocks:
            yield from (block.qkv, block.o, block.up, block.down)

    @property
    def num_bytes(self) -> int:
        """Memory that they take: matrices with their scales and biases, norms, learned positions."""
        norms = [
            norm
            for block in self.blocks
            for norm in (block.attention_norm, block.q_norm, block.k_norm, block.feed_forward_norm)
            if norm is not None
        ]
        tensors = [tensor for matrix in self.matrices for tensor in (matrix.weight, matrix.scale, matrix.bias)]
        tensors += [tensor for norm in (*norms, self.norm) for tensor in norm.parameters()]
        return sum(tensor.nbytes for tensor in (*tensors, self.positions) if tensor is not None)


def _block(block: Any, dtype: torch.dtype) -> BlockWeights:
    attention, feed_forward = block.attention, block.feed_forward
    ups = [layer for layer in (feed_forward.gate_proj, feed_forward.up_proj) if layer is not None]
    return BlockWeights(
        _float_norm(block.attention_norm),
        _float_norm(attention.q_norm),
        _float_norm(attention.k_norm),
        Matrix.of([attention.q_proj, attention.k_proj, attention.v_proj], dtype),
        Matrix.of([attention.o_proj], dtype),
        _float_norm(block.feed_forward_norm),
        Matrix.of(ups, dtype),
        Matrix.of([feed_forward.down_proj], dtype),
    )


def _float(tensor: Tensor) -> Tensor:
    return tensor.detach().float().clone(memory_format=torch.contiguous_format)


def _float_norm(norm: Any) -> Any:
    """A norm of the same kind with a float32 copy of its weights; of None, None."""
    return None if norm is None else copy.deepcopy(norm).float().requires_grad_(False)
