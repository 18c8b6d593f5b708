"""Sharded runs of two processes train, save and resume as one process does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import sharded_runs
from helpers.sharded_runs import VARIANTS, losses

from lit_lm.checkpoint import read_checkpoint

TOLERANCES = {"bf16": 2e-2, "muon": 2e-3, "muon in blocks": 2e-3}
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


def test_a_checkpoint_is_that_of_one_process(folder: Path) -> None:
    one, sharded = (read_checkpoint(folder / name).content for name in ("one.ckpt", "adamw.ckpt"))
    assert sharded.keys() == one.keys()
    torch.testing.assert_close(sharded["state_dict"], one["state_dict"], rtol=1e-3, atol=1e-5)
    states = (content["optimizer_states"][0]["state"] for content in (sharded, one))
    torch.testing.assert_close(*states, rtol=1e-3, atol=1e-5)


def test_all_processes_report_that_one_cannot_write(folder: Path) -> None:
    for rank in (0, 1):
        assert "No space left on device" in (folder / f"error{rank}.txt").read_text()
    assert not [path for path in folder.iterdir() if "full" in path.name]


def test_one_process_resumes_from_a_sharded_checkpoint(folder: Path) -> None:
    resumed, expected = (losses("auto", steps=15, ckpt_path=str(folder / name)) for name in ("adamw.ckpt", "one.ckpt"))
    assert resumed == pytest.approx(expected, abs=1e-5)
