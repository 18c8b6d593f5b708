"""What suits the machine at hand: precision, compilation, memory."""

import ctypes
import math
import shutil
import sys
import time

import torch

WORTH_BFLOAT16 = 256
"""From this d_model on, products in bfloat16 save a CPU more time than the casts around them cost."""

WORTH_COMPILING = {"cpu": 1e14, "cuda": 1e17}
"""FLOPs of a whole training run from which on compilation earns back the half minute, or more, that it takes."""

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Options of mallopt(3)."""


def best_precision(accelerator: str, d_model: int) -> str:
    """The Trainer's `precision` for a model of that width: bfloat16 where it is fast, else float32.

    A function of the machine and the model alone, so that a run that goes on decides as it did before.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif accelerator in ("auto", "cpu") and not torch.backends.mps.is_available():
        fast = torch.cpu.get_capabilities().get("avx512_bf16", False) and d_model >= WORTH_BFLOAT16
    else:
        fast = False
    return "bf16-mixed" if fast else "32-true"


def worth_compiling(device_type: str, flops: float) -> bool:
    """Whether a training run of so many FLOPs is better compiled; on a CPU it takes a compiler of C++."""
    if device_type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        return False
    return flops >= WORTH_COMPILING.get(device_type, float("inf"))


def tune_malloc() -> None:
    """Have malloc keep what is freed, for the next step needs it again.

    glibc maps every large tensor anew and gives it back, so that each step touches its memory for the first time. How
    much that costs is up to the kernel: from 5 % of a step to several times its length were seen.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def flush_denormals() -> None:
    """Have a CPU take numbers below 1.2e-38, the least of full precision, for zero.

    It computes with them many times more slowly: attention's gradient was seen to take a third longer. Threads inherit
    this from the one that starts them, so it comes before any work.
    """
    torch.set_flush_denormal(True)


def measured_peak_flops(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """FLOP/s that a square matrix product reaches on the device: what utilization is a share of.

    The best of a few products of `size` x `size` matrices (1,024 on a CPU, 8,192 elsewhere: some 50 ms in all).
    """
    size = size or (1024 if device.type == "cpu" else 8192)
    a = torch.ones(size, size, device=device, dtype=dtype)
    best = math.inf
    for _ in range(4):  # the first one warms up
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
