"""tools/faults.py: interrupted runs are continued exactly."""

import os
import subprocess
import sys
from pathlib import Path


def test_runs_survive_the_faults_of_the_fault_injection_tool(tmp_path: Path) -> None:
    tool = Path(__file__).parents[2] / "tools" / "faults.py"
    command = [sys.executable, str(tool), "--kills=1", "--steps=30", "--seed=1", "--only=SIGKILL"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| yes |") == 1
