"""A few of the cases of tools/resume_matrix.py."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import resume_matrix


def test_interrupted_runs_end_as_promised(corpus: Path, tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("needs Linux")
    (tmp_path / "longer.txt").write_text(f"{corpus.read_text(encoding='utf-8')}<|endoftext|>" * 6, encoding="utf-8")
    command = [sys.executable, resume_matrix.__file__, "--cases=6", "--seed=48", "--source=longer.txt"]
    halves = [
        subprocess.Popen(
            [*command, f"--only={numbers}"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, encoding="utf-8"
        )
        for numbers in ("^[024]:", "^[135]:")
    ]  # fmt: skip
    printed = "".join(half.communicate(timeout=600)[0] for half in halves)
    assert [half.returncode for half in halves] == [0, 0], printed
    assert len(re.findall(r"^\d: .*: (?:equal|close|refused)\b", printed, re.MULTILINE)) == 6


def test_a_sample_has_every_value_and_depends_on_its_seed() -> None:
    cases = resume_matrix.sample(100, 0)
    assert cases == resume_matrix.sample(100, 0) != resume_matrix.sample(100, 1)
    assert {case.before.optimizer for case in cases} == resume_matrix.OPTIMIZERS.keys()
    assert {case.before.schedule for case in cases} == resume_matrix.SCHEDULES.keys()
    assert {case.workers for case in cases} == {(0, 0), (0, 2), (2, 0), (2, 2)}
    assert {(case.signal.name, case.group) for case in cases} == {
        (name, group) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGKILL") for group in (False, True)
    }
    assert {case.moment for case in cases} == {
        "setup", "first step", "step", "validation", "compilation", "writing"
    }  # fmt: skip
    changed = {
        tuple(key for key, value in vars(case.before).items() if vars(case.after)[key] != value) for case in cases
    }
    assert changed == {(), ("optimizer",), ("schedule",), ("processes",), ("seed",)}
