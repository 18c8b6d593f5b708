"""Several processes: launchers that the Trainer does not know of, different starts, lost processes, SLURM."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import TINY, Command
from lightning.pytorch import Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from lit_lm.training.module import LitLM
from lit_lm.training.processes import check_world_size, choose_port, watch_connections

SCRIPT = """
import collections, os, signal, sys
import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from lightning.pytorch import Callback
from lit_lm.__main__ import main
from lit_lm.training import checkpointing
from lit_lm.training.module import LitLM

original = LitLM.training_step

def training_step(self, *args):
    here = self.trainer.global_rank, self.global_step, os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if here == (1, 7, "0"):
        os.kill(os.getpid(), signal.SIGKILL)
    loss = original(self, *args)
    if "COUNT" in os.environ and here[:2] == (1, 1):
        self.step_losses[-1].fill_(torch.nan)
    if "COUNT" in os.environ and (*here[:2], len(self.step_losses)) == (1, 3, 2):
        os.kill(os.getpid(), signal.SIGTERM)
    return loss

LitLM.training_step = training_step

if "COUNT" in os.environ:  # the clocks differ, and that of process 0 counts: a minute passes in step 1
    checkpointing.monotonic = lambda: 60.0 * Count.started if os.environ["RANK"] == "0" else 0.0


calls = collections.Counter()

def count(name):
    original = getattr(torch.distributed, name)
    def counted(*args, **options):
        calls[name] += 1
        return original(*args, **options)
    setattr(torch.distributed, name, counted)


class Count(Callback):
    started = False

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        Count.started = True
        if (trainer.global_step, batch_idx) in [(2, 4), (3, 6)]:
            print(f"{trainer.global_rank}: step {trainer.global_step}, calls {dict(calls)}")
            calls.clear()

    def on_train_start(self, trainer, pl_module):
        for name in ("all_reduce", "all_gather", "all_gather_object", "broadcast", "broadcast_object_list", "barrier"):
            count(name)
        self.sent, model = 0, trainer.strategy.model
        print("views" if model.gradient_as_bucket_view else "copies", "buffers" if model.broadcast_buffers else "none")
        def hook(state, bucket):
            self.sent += 1
            return allreduce_hook(state, bucket)
        model.register_comm_hook(None, hook)

    def on_exception(self, trainer, pl_module, exception):
        weights = [float(parameter.sum()) for parameter in pl_module.parameters()]
        print(f"{trainer.global_rank}: sent {self.sent} in {trainer.global_step}, weights {weights}")


if "COUNT" in os.environ:
    sys.modules["counting"] = sys.modules["__main__"]
    sys.argv += ["--trainer.callbacks", "counting.Count"]
if "APART" in os.environ:
    os.chdir(os.environ["RANK"])
main(sys.argv[1:])
"""
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.fixture
def options(corpus: Path, cache: Path) -> list[str]:
    return ["fit", *TINY, f"--data.source={corpus}", f"--data.cache_dir={cache}", "--trainer.max_steps=10",
            "--trainer.log_every_n_steps=1", "--checkpoint.every_n_steps=3", "--ckpt_path=last"]  # fmt: skip


def run(folder: Path, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(SCRIPT)
    env = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} | variables
    return subprocess.run(
        [sys.executable, *args], cwd=folder, env=env, capture_output=True, text=True, encoding="utf-8", timeout=300
    )


def losses(version: Path) -> list[float]:
    events = EventAccumulator(str(version))
    events.Reload()
    return [event.value for tag in ("train/loss", "val/loss") for event in events.Scalars(tag)]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"},
            "torchrun started 2 processes, but the Trainer expects 1: pass --trainer.devices 2$",
        ),
        (
            {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "2"},
            "torchrun started 8 processes, .*: pass --trainer.devices 4 --trainer.num_nodes 2$",
        ),
        (
            {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2"},
            "srun started 4 processes, .*: pass --trainer.devices 2 --trainer.num_nodes 2$",
        ),
    ],
    ids=["torchrun", "torchrun on two nodes", "srun"],
)
def test_each_of_several_processes_does_not_train_a_model_of_its_own(
    variables: dict[str, str], message: str, options: list[str], lit_lm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert re.search(message, lit_lm(*options, fails=True), re.MULTILINE)
    assert not Path("logs").exists()


def test_in_a_shell_of_slurm_the_trainer_starts_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "1"}.items():
        monkeypatch.setenv(name, value)
    trainer: Any = SimpleNamespace(world_size=4)
    with pytest.raises(ValueError, match="srun started 1 processes, but the Trainer expects 4"):
        check_world_size(trainer)
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")
    check_world_size(trainer)


def test_a_node_whose_own_name_leads_back_to_itself_is_refused(
    options: list[str], lit_lm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "localhost")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setenv("MASTER_ADDR", "10.77.0.1")
    message = lit_lm(*options, "--trainer.num_nodes=2", fails=True)
    assert re.search("localhost, means (127.0.0.1|::1), .* GLOO_SOCKET_IFNAME to the interface .* lo", message)


def test_processes_meet_at_a_port_that_no_connection_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_PORT", raising=False)
    monkeypatch.setattr("lit_lm.training.processes.PORTS", range(20_000, 20_002))
    trainer = Trainer(accelerator="cpu", devices=2, logger=False)
    with socket.create_server(("", 20_000)):
        choose_port(trainer)
        assert os.environ.pop("MASTER_PORT") == "20001"
    monkeypatch.setenv("MASTER_PORT", "1")
    choose_port(trainer)
    assert os.environ["MASTER_PORT"] == "1"


@pytest.mark.skipif(sys.platform != "linux", reason="options of Linux")
def test_a_connection_fails_when_the_other_machine_is_silent() -> None:
    with socket.create_server(("", 0)) as server, socket.create_connection(server.getsockname()) as connection:
        watch_connections()
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 5
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 5


def test_torchrun_restarts_a_run_whose_process_was_killed(options: list[str], lit_lm: Command, tmp_path: Path) -> None:
    lit_lm(*options, "--name=whole")
    done = run(tmp_path, *TORCHRUN, "--max-restarts=1", "script.py", *options, "--name=killed", "--trainer.devices=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resuming from logs/killed/version_0/checkpoints/step_00000006.ckpt" in done.stdout
    assert losses(tmp_path / "logs/killed/version_0") == pytest.approx(losses(Path("logs/whole/version_0")), abs=1e-5)


def test_a_killed_process_ends_the_run_with_a_line_that_says_how_to_resume(options: list[str], tmp_path: Path) -> None:
    done = run(tmp_path, "script.py", *options, "--trainer.devices=2")
    assert done.returncode in (2, -signal.SIGKILL)  # the first process notices, or the launcher ends it
    lines = [line for line in done.stderr.splitlines() if line.startswith("lit-lm: error: ")]
    assert lines
    for line in lines:
        assert re.search("process 1 ended with code -9|another process ended or cannot be reached", line)
        assert line.endswith("to resume, run the same command with --ckpt_path last")
        assert "pair.cc" not in line
    assert "Traceback" not in done.stderr


def test_a_step_sends_two_messages_and_all_skip_and_stop_together(options: list[str], tmp_path: Path) -> None:
    options = [*options, "--data.micro_batch_size=1", "--trainer.log_every_n_steps=2", "--trainer.devices=2",
               "--checkpoint.every_n_steps=null", "--checkpoint.every_n_minutes=1"]  # fmt: skip
    done = run(tmp_path, *TORCHRUN, "script.py", *options, COUNT="1")
    assert done.stdout.count("views none") == 2  # the gradients stay where they are
    # process 1 had a loss of nan in step 2, and SIGTERM in step 4
    assert re.search("step 2: loss nan, gradient norm [0-9.]+; .*the step is skipped", done.stdout)
    assert "stopped by SIGTERM after step 4; saved to logs/run/version_0/checkpoints/step_00000004.ckpt" in done.stdout
    for line in ("{}: step 3, calls {{'all_reduce': 2}}", "{}: sent 4 in 4, weights"):  # one is of the gradients
        assert all(line.format(rank) in done.stdout for rank in range(2)), done.stdout
    assert (tmp_path / "logs/run/version_0/checkpoints/step_00000001.ckpt").exists()
    assert len(set(re.findall("weights (.*)", done.stdout))) == 1


def test_processes_that_start_from_different_checkpoints_stop(
    options: list[str], lit_lm: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("0", "1"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "0")
    lit_lm(*options, "--name=run", "--trainer.max_steps=4")
    done = run(tmp_path, *TORCHRUN, "script.py", *options, "--name=run", "--trainer.devices=2", APART="1")
    assert done.returncode == 1
    assert "the first from step 4 of logs/run/version_0, and process 1 from the beginning; use a folder" in done.stderr
    assert "step 5" not in done.stdout


SCONTROL = """#!/bin/sh
echo "$@" >> {folder}/calls
[ "$2" = 7_3 ] || { echo "Invalid job id specified" >&2; exit 1; }
"""


@pytest.mark.parametrize(
    ("array", "reported"),
    [
        ({"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}, "job 7_3 is requeued"),
        ({}, "job 9 could not be requeued: Invalid job id specified"),
    ],
    ids=["an array's job", "a job that scontrol refuses"],
)
def test_slurm_requeues_a_job_that_it_signals(
    array: dict[str, str],
    reported: str,
    options: list[str],
    lit_lm: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "scontrol").write_text(SCONTROL.replace("{folder}", str(tmp_path)))
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in {"SLURM_JOB_ID": "9", **array}.items():
        monkeypatch.setenv(name, value)
    original = LitLM.training_step

    def signaled(self: LitLM, *args: Any) -> Tensor:
        if self.global_step == 4:
            os.kill(os.getpid(), signal.SIGUSR1)
        return original(self, *args)

    monkeypatch.setattr(LitLM, "training_step", signaled)
    with pytest.raises(SystemExit) as stop:
        lit_lm(*options)
    assert stop.value.code == 128 + signal.SIGUSR1
    printed = capsys.readouterr().out
    assert f"step_00000005.ckpt\n{reported}" in printed
    assert (tmp_path / "calls").read_text().split()[0] == "requeue"
