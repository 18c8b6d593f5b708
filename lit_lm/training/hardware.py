"""Settings that depend on the machine: precision, compilation, memory."""

import ctypes
import math
import os
import shutil
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch._functorch import config as functorch_config

WORTH_BFLOAT16 = 256
"""Smallest d_model at which matrix products in bfloat16 save a CPU more time than the casts cost."""

WORTH_COMPILING = {"cpu": 1e14, "cuda": 1e17}
"""Smallest number of training FLOPs at which compilation, which takes half a minute or more, pays off."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Options of mallopt(3)."""


def best_precision(accelerator: str, d_model: int) -> str:
    """Precision for the Trainer: bfloat16 if it is fast for a model of this width, else float32.

    Depends only on the machine and the model, so that a resumed run uses the same precision.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif accelerator in ("auto", "cpu") and not torch.backends.mps.is_available():
        fast = torch.cpu.get_capabilities().get("avx512_bf16", False) and d_model >= WORTH_BFLOAT16
    else:
        fast = False
    return "bf16-mixed" if fast else "32-true"


def worth_compiling(device_type: str, flops: float) -> bool:
    """Whether compilation pays off for a training run of `flops` FLOPs. On a CPU it needs a C++ compiler."""
    if device_type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        return False
    return flops >= WORTH_COMPILING.get(device_type, float("inf"))


def compile_static(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function` compiled for the shapes of its first call. Later runs with these shapes reuse the compiled code."""
    # torch's cache excludes custom autograd functions by default; their code is part of the cache's key
    functorch_config.autograd_cache_allow_custom_autograd_functions = True
    return torch.compile(function, dynamic=False)


def busy_load() -> float | None:
    """The system's load if other programs keep the CPUs busy, which makes training slower; else None."""
    load = os.getloadavg()[0]
    return load if load > (os.cpu_count() or 1) + 0.5 else None


def tune_malloc(keep: bool = True) -> None:
    """Make malloc keep freed memory for the next step, or give it back.

    By default, glibc maps fresh pages for every large tensor and unmaps them when it is freed. Depending on the kernel,
    this was measured to cost between 5 % and several times the duration of a step.

    Args:
        keep: Keep it. A sharded run frees the weights of each block, and what it kept would grow to more than twice
            the memory in use, in pieces that fit nothing.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        if keep:
            libc.mallopt(M_MMAP_MAX, 0)
            libc.mallopt(M_TRIM_THRESHOLD, -1)
        else:
            libc.mallopt(M_MMAP_THRESHOLD, 2**20)


def flush_denormals() -> None:
    """Flush denormals (numbers below 1.2e-38) to zero on the CPU.

    Denormals are many times slower: with them, the gradient of attention took a third longer. Threads inherit the
    setting from the thread that starts them, so call this before any work.
    """
    torch.set_flush_denormal(True)


def measured_peak_flops(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """FLOP/s that a matrix product reaches on the device, the reference for utilization.

    Best of a few products of `size` x `size` matrices (None: 1,024 on a CPU, 8,192 elsewhere). Takes about 50 ms.
    """
    size = size or (1024 if device.type == "cpu" else 8192)
    a = torch.ones(size, size, device=device, dtype=dtype)
    best = math.inf
    for _ in range(4):  # the first is a warm-up
        _synchronize(device)
        start = time.perf_counter()
        a @ a
        _synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
