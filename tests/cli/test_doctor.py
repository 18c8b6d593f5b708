"""`lit-lm doctor`: what it finds on this machine and on broken ones."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch
from conftest import Command

from lit_lm.cli import doctor


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SECONDS", 0.0)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))


def test_each_check_is_a_line(lit_lm: Command) -> None:
    lines = lit_lm("doctor").splitlines()
    assert all(line.startswith(("ok ", "!  ")) for line in lines)
    text = "\n".join(lines)
    assert f"torch {version('torch')}, lightning {version('lightning')}" in text
    assert "fit trains on " in text
    assert " GiB of memory (cpu)" in text
    assert f"GiB free in {Path.cwd() / 'logs'}" in text
    assert "tokens/s with quick's model; lit-lm fit --config quick takes about " in text
    assert not (Path.cwd() / "logs").exists()


def test_the_speed_is_that_of_a_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """With steps of 0.1 s, 1,600 steps of 4 x 256 tokens take 160 s."""
    monkeypatch.setattr(doctor, "_seconds_per_step", lambda config: 0.1)
    text = doctor._speed().text
    assert text == "10,240 tokens/s with quick's model; lit-lm fit --config quick takes about 3 min"


def test_a_missing_package_prevents_training(
    lit_lm: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(name: str) -> str:
        if name == "tiktoken":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor, "version", fails)
    with pytest.raises(SystemExit) as stop:
        lit_lm("doctor")
    assert stop.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "!  tiktoken is missing: pip install tiktoken"
    assert len(lines) == 2  # the other checks may need it


def test_torch_that_cannot_be_imported_prevents_training(tmp_path: Path) -> None:
    def blocked(*args: str) -> subprocess.CompletedProcess[str]:
        code = "import sys; sys.modules['torch'] = None; from lit_lm.__main__ import main; main(sys.argv[1:])"
        command = [sys.executable, "-c", code, *args]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    doctor = blocked("doctor")
    assert (doctor.returncode, doctor.stderr) == (1, "")
    assert "!  torch cannot be imported: import of torch halted; " in doctor.stdout
    for arguments in (["generate", "Once"], ["fit"]):
        failed = blocked(*arguments)
        assert failed.returncode == 2
        assert failed.stderr.startswith("lit-lm: error: import of torch halted; ")
        assert failed.stderr.endswith("; install lit-lm again, and see lit-lm doctor\n")
        assert failed.stderr.count("\n") == 1


def test_a_full_or_unusable_disk_prevents_training(
    lit_lm: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "logs").touch()
    with pytest.raises(SystemExit) as stop:
        lit_lm("doctor")
    assert stop.value.code == 1
    assert f"!  runs: {tmp_path / 'logs'} is not a folder that can be written to; " in capsys.readouterr().out
    (tmp_path / "logs").unlink()
    full = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(SystemExit) as stop:
        lit_lm("doctor")
    assert "!  cache: 0.0 GiB free in " in capsys.readouterr().out


def test_what_only_makes_training_slower_is_no_failure(lit_lm: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr("lit_lm.kernels.build.load", lambda name: None)
    text = lit_lm("doctor")
    assert "!  other programs keep the CPUs busy (load 99.0)" in text
    assert "!  cc cannot compile the C files" in text
    if not torch.cuda.is_available():
        assert "!  torch.compile is not available, so that long runs are slower: install g++ or clang++" in text
