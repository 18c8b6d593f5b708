"""Causal attention on the CPU: lit-lm's C function and torch's scaled_dot_product_attention, by turns.

Errors are relative to the gradients in float64: the norm of the difference over the norm, largest of q, k and v.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lit_lm.model.attention import causal_attention
from lit_lm.training.hardware import flush_denormals, tune_malloc

SHAPES = [
    (4, 4, 256, 32, torch.float32),
    (8, 16, 256, 32, torch.bfloat16),
    (8, 8, 512, 64, torch.bfloat16),
    (2, 12, 1024, 64, torch.float32),
    (2, 12, 1024, 64, torch.bfloat16),
]
"""Rows, heads, tokens, head size and data type: the first of `quick.yaml`, the second of bench_train.py."""
Attention = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the benchmark."""
    parser.add_argument("--rounds", type=int, default=15, help="calls of each function (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")


def torch_attention(q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
    """The fused kernel; with dropout, separate operations."""
    return scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=True)


def run(options: argparse.Namespace) -> None:
    """Print a table with the medians."""
    torch.set_num_threads(options.threads)
    tune_malloc()
    flush_denormals()
    print("| B, H, T, K | torch: forward, backward | with dropout | error | lit-lm: forward, backward "
          "| with dropout | error |\n|---|---|---|---|---|---|---|")  # fmt: skip
    for rows, heads, tokens, size, dtype in SHAPES:
        inputs = [torch.randn(rows, tokens, heads, size).to(dtype).transpose(1, 2) for _ in range(4)]
        functions: tuple[Attention, ...] = torch_attention, causal_attention
        times: dict[tuple[Attention, float], list[tuple[float, float]]] = {}
        for _ in range(options.rounds + 1):
            for function in functions:
                for dropout_p in (0.0, 0.1):
                    times.setdefault((function, dropout_p), []).append(timed(function, inputs, dropout_p))
        cells = [f"{rows}, {heads}, {tokens}, {size}, {str(dtype).removeprefix('torch.')}"]
        for function in functions:
            for dropout_p in (0.0, 0.1):
                forward, backward = (
                    statistics.median(column) for column in zip(*times[function, dropout_p][1:], strict=True)
                )
                cells.append(f"{1e3 * forward:.2f}, {1e3 * backward:.2f} ms")
            cells.append(f"{error(function, inputs):.1e}")
        print(f"| {' | '.join(cells)} |", flush=True)


def timed(function: Attention, inputs: list[Tensor], dropout_p: float) -> tuple[float, float]:
    """Seconds of the forward and of the backward pass. inputs: q, k, v and the gradient of the output."""
    leaves = [x.detach().requires_grad_() for x in inputs[:3]]
    start = time.perf_counter()
    y = function(*leaves, dropout_p)
    middle = time.perf_counter()
    y.backward(inputs[3])  # type: ignore[no-untyped-call]
    return middle - start, time.perf_counter() - middle


def gradients(function: Attention, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of q, k and v."""
    leaves = [x.detach().requires_grad_() for x in inputs[:3]]
    return torch.autograd.grad(function(*leaves, 0.0), leaves, inputs[3])


def error(function: Attention, inputs: list[Tensor]) -> float:
    """Largest relative error of a gradient."""
    exact = gradients(torch_attention, [x.double() for x in inputs])
    return max(
        float((found.double() - of_input).norm() / of_input.norm())
        for found, of_input in zip(gradients(function, inputs), exact, strict=True)
    )
