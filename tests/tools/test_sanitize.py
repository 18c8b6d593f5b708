"""A few of the cases of tools/sanitize.py."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sanitize

from lit_lm.kernels import build


def test_the_c_files_have_no_memory_errors_or_undefined_behavior() -> None:
    if sys.platform != "linux" or not shutil.which("gcc"):
        pytest.skip("no gcc for Linux")
    asan = subprocess.run(["gcc", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True)
    if not Path(asan.stdout.strip()).is_absolute():
        pytest.skip("gcc has no AddressSanitizer")
    found = sanitize.sanitize(build.FLAGS[1], range(20))
    assert found.keys() == {"float32", "bfloat16", "int8", "attention"}
    assert len(found["attention"]) == 20
