"""Sharded runs of two processes train, save and resume as one process does."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import sharded_runs
from helpers.sharded_runs import DIVISIBLE, VARIANTS, losses

from lit_lm.checkpoint import read_checkpoint
from lit_lm.training.sharding import FullyShardedStrategy, check_division

TOLERANCES = {"bf16": 2e-2, "muon": 2e-3, "parallel muon": 2e-2}
"""Where a rounding to bfloat16 can differ; all others are equal but for the order of sums in float32."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the losses and the checkpoints of all variants, run by two processes."""
    folder = tmp_path_factory.mktemp("sharded")
    losses("auto", save=str(folder / "one.ckpt"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}  # fmt: skip
    program = [sys.executable, "-W", "ignore", sharded_runs.__file__]
    started = [
        subprocess.Popen(
            program, cwd=folder, env=os.environ | torchrun | {"RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE
        )
        for rank in ("0", "1")
    ]
    errors = [process.communicate(timeout=300)[1].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_are_those_of_one_process(variant: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    sharded = json.loads(Path("losses.json").read_text())[variant]
    one = losses("auto", **VARIANTS[variant] | {"on_meta_device": False})
    assert sharded == pytest.approx(one, abs=TOLERANCES.get(variant, 1e-5))
    assert sharded[-1] < sharded[0]


@pytest.mark.parametrize("variant", ["adamw", "parallel", "parallel gpt2"])
def test_a_checkpoint_is_that_of_one_process(variant: str, folder: Path, tmp_path: Path) -> None:
    losses("auto", **VARIANTS[variant] | {"on_meta_device": False, "save": str(tmp_path / "one.ckpt")})
    one, sharded = (read_checkpoint(path).content for path in (tmp_path / "one.ckpt", folder / f"{variant}.ckpt"))
    assert sharded.keys() == one.keys()
    torch.testing.assert_close(sharded["state_dict"], one["state_dict"], rtol=1e-3, atol=1e-5)
    states = (content["optimizer_states"][0]["state"] for content in (sharded, one))
    torch.testing.assert_close(*states, rtol=1e-3, atol=1e-5)


def test_all_processes_report_that_one_cannot_write(folder: Path) -> None:
    for rank in (0, 1):
        blocked, full = (folder / f"errors{rank}.txt").read_text().splitlines()
        assert "file" in blocked
        assert "No space left on device" in full
    assert not [path for path in folder.iterdir() if "full" in path.name]


def test_what_cannot_be_divided_is_named_with_the_remedy() -> None:
    trainer: Any = SimpleNamespace(strategy=FullyShardedStrategy(tensor_parallel_size=4), world_size=6)
    config = replace(DIVISIBLE, num_heads=6, num_kv_heads=2)
    with pytest.raises(ValueError, match="num_heads is 6") as problem:
        check_division(trainer, config)
    assert str(problem.value).splitlines() == [
        "model.net.num_heads is 6, which tensor_parallel_size 4 does not divide; use a multiple of 4, such as 8, or "
        "another tensor_parallel_size",
        *(
            f"model.net.{name}, which tensor_parallel_size 4 does not divide; use a multiple of 4, such as {multiple}, "
            "or another tensor_parallel_size"
            for name, multiple in (("num_kv_heads is 2", 4), ("d_ff is 46", 48), ("vocab_size is 62", 64))
        ),
        "tensor_parallel_size is 4, which does not divide the number of processes, 6; pass --trainer.devices 4, or "
        "another multiple",
    ]
    with pytest.raises(ValueError, match="tensor_parallel_size is 0; it must be at least 1"):
        FullyShardedStrategy(tensor_parallel_size=0)


def test_one_process_resumes_from_a_sharded_checkpoint(folder: Path) -> None:
    resumed, expected = (losses("auto", steps=15, ckpt_path=str(folder / name)) for name in ("adamw.ckpt", "one.ckpt"))
    assert resumed == pytest.approx(expected, abs=1e-5)
