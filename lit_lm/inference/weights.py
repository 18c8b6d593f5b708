"""Weights stored in a smaller data type than the arithmetic: bfloat16, or int8 with one scale per output."""

import copy
import ctypes
import sys
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lit_lm.model.layers import Embedding, Linear
from lit_lm.model.transformer import Transformer

WeightDtype = Literal["float32", "bfloat16", "int8"]
"""Data type of the matrices for generation; int8 has one float32 scale per output."""


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (rows, cols) as int8 (rows, cols) and scale (rows), with 127 steps on either side of zero."""
    scale = weight.float().abs().amax(dim=1).clamp(min=1e-12) / 127
    return (weight.float() / scale.unsqueeze(1)).round().to(torch.int8), scale


def stored(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Copy of a weight (rows, cols) in another data type, and its scale (rows) if that is int8."""
    if dtype == torch.int8:
        return quantize(weight)
    return weight.to(dtype, copy=True), None


def large(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Uninitialized tensor on the CPU, in huge pages if Linux grants them: reading these is a tenth faster."""
    tensor = torch.empty(tuple(shape), dtype=dtype)
    page, huge = 2 << 20, 14  # MADV_HUGEPAGE
    start = -(-tensor.data_ptr() // page) * page
    size = (tensor.data_ptr() + tensor.nbytes - start) // page * page
    if sys.platform == "linux" and size > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), huge)  # only advice
    return tensor


class StoredLinear(nn.Module):
    """x W^T * scale + bias in the data type of x, with W stored in another."""

    weight: Tensor  # (rows, cols)
    scale: Tensor | None  # (rows)
    bias: Tensor | None  # (rows)

    def __init__(self, layer: Linear, dtype: torch.dtype) -> None:
        super().__init__()
        weight, scale = stored(layer.weight.detach(), dtype)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().float().clone())

    def forward(self, x: Tensor) -> Tensor:
        y = linear(x, self.weight.to(x.dtype))
        if self.scale is not None:
            y = y * self.scale
        return (y if self.bias is None else y + self.bias).to(x.dtype)


class StoredEmbedding(nn.Module):
    """`weight[ids] * scale[ids]` in `compute_dtype`, with weight stored in another."""

    weight: Tensor  # (rows, cols)
    scale: Tensor | None  # (rows)

    def __init__(self, layer: Embedding, dtype: torch.dtype, compute_dtype: torch.dtype) -> None:
        super().__init__()
        weight, scale = stored(layer.weight.detach(), dtype)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.compute_dtype = compute_dtype

    def forward(self, ids: Tensor) -> Tensor:
        x = self.weight[ids].to(self.compute_dtype)
        return x if self.scale is None else (x * self.scale[ids].unsqueeze(-1)).to(self.compute_dtype)


def with_stored_weights(model: Transformer, dtype: torch.dtype, compute_dtype: torch.dtype) -> Transformer:
    """Copy of a model for generation, with matrices stored as `dtype`.

    The embedding returns `compute_dtype`, which is therefore the data type of the residual stream. All other parameters
    (norms and learned positions) are float32.
    """
    tensors = [*model.parameters(), *model.buffers()]
    converted = copy.deepcopy(model, memo={id(tensor): tensor for tensor in tensors})  # the modules, not the tensors
    for module in list(converted.modules()):
        for name, child in module.named_children():
            if type(child) is Linear:
                setattr(module, name, StoredLinear(child, dtype))
    embedding = StoredEmbedding(model.embedding, dtype, compute_dtype)
    converted.set_submodule("embedding", embedding)
    if model.head.weight is model.embedding.weight:
        converted.head.register_buffer("weight", embedding.weight)
        converted.head.register_buffer("scale", embedding.scale)
    for module in converted.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach().float().clone(), requires_grad=False))
    return converted.eval()


def num_bytes(model: nn.Module) -> int:
    """Size of a model's weights in memory; shared tensors count once."""
    tensors = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}
    return sum(tensor.nbytes for tensor in tensors.values())
