"""The command line, run in subprocesses."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}  # the models are too small for several threads


def lit_lm(*args: object, folder: Path) -> str:
    command = [sys.executable, "-m", "lit_lm", *map(str, args)]
    done = subprocess.run(
        command, cwd=folder, env=ONE_THREAD, capture_output=True, text=True, encoding="utf-8", timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


def test_fit_validate_predict(tmp_path: Path) -> None:
    options = [*TINY, f"--data.cache_dir={tmp_path}", "--trainer.max_steps=30", "--trainer.val_check_interval=15"]
    printed = lit_lm("fit", *options, "--data.source=stories", "--name=mine", folder=tmp_path)
    losses = [float(loss) for loss in re.findall(r"val/loss ([\d.]+)", printed)]
    assert len(losses) == 2
    assert losses[1] < losses[0]
    last = "logs/mine/version_0/checkpoints/last.ckpt"
    assert f"last checkpoint: {last}" in printed
    assert f"val/loss {losses[1]:.4f}" in lit_lm("validate", "--ckpt_path", last, folder=tmp_path)
    lit_lm("predict", "--ckpt_path", last, "--prompt", "Once", "--output", "out.jsonl", folder=tmp_path)
    (row,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert row["prompt"] == "Once"


def test_training_on_three_processes_equals_training_on_one(corpus: Path, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.txt").write_text("The cat saw a dog.")  # fewer windows than processes
    options = [*TINY, f"--data.source={corpus}", "--data.val_source=tiny.txt", f"--data.cache_dir={cache}",
               "--data.batch_size=6", "--trainer.max_steps=4", "--trainer.log_every_n_steps=1"]  # fmt: skip
    curves = []
    for devices in (1, 3):
        lit_lm("fit", *options, f"--trainer.devices={devices}", f"--name=on{devices}", folder=tmp_path)
        events = EventAccumulator(str(tmp_path / "logs" / f"on{devices}" / "version_0"))
        events.Reload()
        curves.append([event.value for tag in ("train/loss", "val/loss") for event in events.Scalars(tag)])
    assert len(curves[0]) == 5
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_do_not_import_torch(argument: str, tmp_path: Path) -> None:
    code = f"import sys; from lit_lm.__main__ import main; main(['{argument}']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("fit", ("--name", "--ckpt_path", "--checkpoint.every_n_steps", "--model.net.d_model", "--data.source")),
        ("predict", ("--ckpt_path", "--prompt", "--temperature", "--output")),
    ],
)
def test_help_lists_lit_lms_options_before_the_trainers(command: str, options: tuple[str, ...], tmp_path: Path) -> None:
    printed = lit_lm(command, "--help", folder=tmp_path)
    assert max(printed.index(f"  {option} ") for option in options) < printed.index("--trainer.")
