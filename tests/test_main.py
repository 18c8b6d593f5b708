"""Exit codes and messages of the command when a signal arrives or its output is closed."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import TINY
from lightning.pytorch import Callback

from lit_lm import __main__
from lit_lm.training.signals import STOP_SIGNALS


class Signals(Callback):
    """Sends this process a signal during validation."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_validation_batch_start(self, *_: object) -> None:
        os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_a_signal_before_or_after_training_is_reported(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def run(args: list[str], description: str) -> None:
        os.kill(os.getpid(), number)

    module = ModuleType("lit_lm.cli.signaled")
    vars(module)["run"] = run
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(__main__.COMMANDS, "signaled", ("signaled", ""))
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stop:
        __main__.main(["signaled"])
    assert stop.value.code == 128 + number
    assert capfd.readouterr().err == f"lit-lm: stopped by {number.name}\n"
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_a_signal_stops_validation(number: signal.Signals, run_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    callback = f"{{class_path: {__name__}.Signals, init_args: {{number: {int(number)}}}}}"
    with pytest.raises(SystemExit) as stop:
        __main__.main(["validate", f"--ckpt_path={run_folder}", f"--trainer.callbacks={callback}"])
    assert stop.value.code == 128 + number
    assert f"lit-lm: stopped by {number.name}\n" in capfd.readouterr().err


def test_training_continues_when_the_reader_of_its_output_is_gone(tmp_path: Path, corpus: Path, cache: Path) -> None:
    command = [sys.executable, "-m", "lit_lm", "fit", *TINY, f"--data.source={corpus}", f"--data.cache_dir={cache}"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*command, "--trainer.max_steps=2"], cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "logs/run/version_0/checkpoints/step_00000002.ckpt").exists()
