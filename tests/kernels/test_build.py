"""Compiling the C files."""

import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from ctypes import CDLL
from pathlib import Path

import pytest

from lit_lm.kernels import build

Load = Callable[[], CDLL | None]


@pytest.fixture(params=build.OPTIONS)
def load(request: pytest.FixtureRequest) -> Iterator[Load]:
    """Loads a library anew."""

    def load_again() -> CDLL | None:
        build.load.cache_clear()
        return build.load(request.param)

    if load_again() is None:
        pytest.skip("no C compiler")
    yield load_again
    build.load.cache_clear()


def test_without_a_compiler_there_is_no_library(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    for compiler in ("no-such-compiler", "false"):
        monkeypatch.setenv("CC", compiler)
        assert load() is None


def test_without_a_writable_cache_a_library_is_compiled_each_time(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lit-lm").touch()  # a file where the folder should be
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "FLAGS", ([],))
    assert load() is not None


def test_a_library_is_cached_and_reused(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "FLAGS", ([],))
    assert load() is not None
    (library,) = (tmp_path / "lit-lm" / "native").iterdir()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
    assert load() is not None
    assert library.suffix == ".so"


@pytest.mark.parametrize("name", build.OPTIONS)
def test_no_array_on_the_stack_has_a_variable_size(name: str) -> None:
    if build.load(name) is None:
        pytest.skip("no C compiler")
    compiler = shlex.split(os.environ.get("CC", "cc"))
    command = [*compiler, "-fsyntax-only", "-Wvla", "-Walloca", "-Werror", str(build.FOLDER / f"{name}.c")]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
