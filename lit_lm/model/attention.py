"""Causal attention of training on a CPU: lit_lm/kernels/attention.c as an operator of PyTorch.

It computes in float32 whatever the type of its inputs, and saves only these for the backward pass. torch's fused
attention takes two to three times as long on a CPU, and much longer with dropout.

Shapes: B batch, H query heads, G key/value heads, T tokens, K head size.
"""

import ctypes
import math
from typing import Any

import torch
from torch import Tensor, library
from torch.autograd.function import once_differentiable

from lit_lm.kernels import build


class _Task(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("B", "H", "G", "T", "K", "bfloat16", "threads", "seed")),
        ("dropout", ctypes.c_float),
        ("starts", ctypes.c_void_p),
    ]


class _Heads(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p)] + [(name, ctypes.c_int64) for name in ("row", "head", "token")]


def supports(q: Tensor, k: Tensor) -> bool:
    """Whether `causal_attention` can compute these queries (B, H, T, K) and keys (B, G, T, K), and is fast for them."""
    return (
        type(q) is Tensor
        and q.device.type == "cpu"
        and q.dtype == k.dtype
        and q.dtype in (torch.float32, torch.bfloat16)
        and q.shape[2] == k.shape[2]
        and q.shape[0] * k.shape[1] >= _enough_heads()
    )


def _enough_heads() -> float:
    """Smallest number of key/value heads in a batch for which the library keeps all threads busy.

    Infinite if it cannot be compiled, or if the processor is of a kind on which it was not measured.
    """
    known = "AVX" in torch.backends.cpu.get_cpu_capability()
    return torch.get_num_threads() if known and build.load("attention") is not None else math.inf


# what torch.compiler.assume_constant_result does, which would import the compiler, a second of each command
_enough_heads._dynamo_marked_constant = True  # type: ignore[attr-defined]


def causal_attention(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, starts: Tensor | None = None) -> Tensor:
    """dropout(softmax(q k^T / sqrt(K))) v, where each query attends to its own and earlier positions.

    Args:
        q: Queries (B, H, T, K) for which `supports` is true.
        k: Keys (B, G, T, K), where G divides H: each key/value head serves H/G query heads.
        v: Values (B, G, T, K).
        dropout_p: Probability with which a weight is dropped.
        starts: First position (B, T) that each query attends to, at most its own and non-decreasing in each row; None:
            0. Positions before it cost no time.

    Returns:
        (B, H, T, K), stored as (B, T, H, K).

    Raises:
        MemoryError: if memory runs out.
    """
    seed = torch.randint(2**62, ()) if dropout_p else None
    return _CausalAttention.apply(q, k, v, starts, dropout_p, seed)  # type: ignore[no-any-return, no-untyped-call]


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, dropout_p: float, seed: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, starts, seed)
        ctx.dropout_p = dropout_p
        compute = _forward_operator if torch.compiler.is_compiling() else _forward
        return compute(q, k, v, starts, dropout_p, seed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, starts, seed = ctx.saved_tensors
        compute = _backward_operator if torch.compiler.is_compiling() else _backward
        return *compute(q, k, v, gradients[0], starts, ctx.dropout_p, seed), None, None, None


def _forward(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, dropout_p: float, seed: Tensor | None) -> Tensor:
    y = _empty_like(q)
    _call("attention", [q, k, v, y], starts, dropout_p, seed)
    return y


def _backward(
    q: Tensor, k: Tensor, v: Tensor, of_y: Tensor, starts: Tensor | None, dropout_p: float, seed: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = _empty_like(q), _empty_like(k), _empty_like(v)
    _call("attention_backward", [q, k, v, of_y, *gradients], starts, dropout_p, seed)
    return gradients


# the compiler cannot look into calls of C; without it, calling operators would take longer than calling functions
_forward_operator = library.custom_op("lit_lm::causal_attention", _forward, mutates_args=())
_backward_operator = library.custom_op("lit_lm::causal_attention_backward", _backward, mutates_args=())


@_forward_operator.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, dropout_p: float, seed: Tensor | None) -> Tensor:
    return _empty_like(q)


@_backward_operator.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, of_y: Tensor, starts: Tensor | None, dropout_p: float, seed: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_like(q), _empty_like(k), _empty_like(v)


def _empty_like(x: Tensor) -> Tensor:
    """An empty tensor (B, H, T, K), stored as (B, T, H, K), the layout of a model's activations."""
    return x.new_empty(x.transpose(1, 2).shape).transpose(1, 2)


def _call(name: str, tensors: list[Tensor], starts: Tensor | None, dropout_p: float, seed: Tensor | None) -> None:
    """Call a function of the library; the first tensors are queries and keys."""
    q, k, *_ = tensors = [x if x.stride(-1) == 1 else x.contiguous() for x in tensors]
    rows, heads, num_tokens, head_size = q.shape
    starts = None if starts is None else starts.contiguous()
    task = _Task(
        rows, heads, k.shape[1], num_tokens, head_size, q.dtype == torch.bfloat16, torch.get_num_threads(),
        0 if seed is None else int(seed), dropout_p, None if starts is None else starts.data_ptr(),
    )  # fmt: skip
    views = [ctypes.byref(_Heads(x.data_ptr(), *x.stride()[:3])) for x in tensors]
    if getattr(build.load("attention"), name)(ctypes.byref(task), *views):
        raise MemoryError(f"attention over {num_tokens} tokens does not fit into memory")
