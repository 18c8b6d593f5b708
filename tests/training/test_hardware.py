"""Settings that depend on the machine."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lit_lm.training.hardware import (
    WORTH_BFLOAT16,
    WORTH_COMPILING,
    best_precision,
    measured_peak_flops,
    worth_compiling,
)

FAST, SLOW = "bf16-mixed", "32-true"


@pytest.mark.parametrize(
    ("cuda", "cpu", "accelerator", "d_model", "expected"),
    [
        (None, True, "auto", WORTH_BFLOAT16, FAST),
        (None, True, "cpu", WORTH_BFLOAT16, FAST),
        (None, True, "auto", WORTH_BFLOAT16 - 1, SLOW),
        (None, False, "auto", WORTH_BFLOAT16, SLOW),
        (None, True, "mps", WORTH_BFLOAT16, SLOW),
        (True, False, "auto", 64, FAST),
        (True, False, "gpu", 64, FAST),
        (True, False, "cpu", 1024, SLOW),
        (False, True, "cuda", 1024, SLOW),
    ],
)
def test_bfloat16_is_used_where_it_is_fast(
    monkeypatch: pytest.MonkeyPatch, cuda: bool | None, cpu: bool, accelerator: str, d_model: int, expected: str
) -> None:
    """`cuda`: whether the GPU supports bfloat16 (None: no GPU). `cpu`: whether the CPU does."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: cuda)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": cpu})
    assert best_precision(accelerator, d_model) == expected


def test_a_long_run_is_compiled_if_there_is_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert [worth_compiling("cpu", WORTH_COMPILING["cpu"] * factor) for factor in (0.9, 1, 2)] == [False, True, True]
    assert not worth_compiling("mps", 1e30)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not worth_compiling("cpu", 1e30)
    assert worth_compiling("cuda", 1e30)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
@pytest.mark.parametrize("kept", [False, True])
def test_freed_memory_stays_with_the_process(kept: bool) -> None:
    program = """
import sys
from lit_lm.training.hardware import tune_malloc
if sys.argv[1] == "True":
    tune_malloc()
held = bytearray(b"1") * 100_000_000
del held
print(int(open("/proc/self/statm").read().split()[1]) * 4096)
"""
    run = [sys.executable, "-c", program, str(kept)]
    resident = int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    without = [sys.executable, "-c", program.replace("100_000_000", "1"), str(kept)]
    small = int(subprocess.run(without, capture_output=True, text=True, check=True).stdout)
    assert (resident - small > 90_000_000) == kept


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="the CPU cannot flush denormals")
@pytest.mark.parametrize("flushed", [False, True])
def test_denormals_are_flushed_in_all_threads(flushed: bool) -> None:
    program = """
import sys, torch
from lit_lm.training.hardware import flush_denormals
if sys.argv[1] == "True":
    flush_denormals()
torch.set_num_threads(2)
print(int((torch.full((2**20,), 1e-20) * 1e-20).count_nonzero()))
"""
    run = [sys.executable, "-c", program, str(flushed)]
    assert int(subprocess.run(run, capture_output=True, text=True, check=True).stdout) == (0 if flushed else 2**20)


def test_measured_peak_flops_takes_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.0, 4.0, 10.0, 12.0, 20.0, 23.0, 30.0, 35.0])  # start and end of four products
    monkeypatch.setattr(time, "perf_counter", lambda: next(seconds))
    assert measured_peak_flops(torch.device("cpu"), torch.float32, size=8) == 2 * 8**3 / 2.0
