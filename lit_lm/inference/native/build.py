"""The C step as a shared library, compiled where it is first used and kept for the next time."""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import torch

from lit_lm.files import cache_folder, write_whole

SOURCE = Path(__file__).with_name("step.c")
"""project.h lies beside it."""
FLAGS: tuple[list[str], ...] = (["-march=native", "-fopenmp"], ["-fopenmp"], ["-march=native"], [])
"""Flags to try, in this order, until the library compiles and loads."""


@functools.cache
def load() -> ctypes.CDLL | None:
    """The compiled C step; None if there is no compiler that can make it."""
    try:
        compiler = shlex.split(os.environ.get("CC", "cc"))
    except ValueError:
        return None
    sources = (SOURCE, SOURCE.with_name("project.h"))
    text = [path.read_text(encoding="utf-8") for path in sources]
    known = (text, compiler, FLAGS, platform.machine(), _processor(), torch.__version__)
    digest = hashlib.blake2b(repr(known).encode(), digest_size=8).hexdigest()
    library = cache_folder() / "native" / f"step-{digest}.so"
    with suppress(OSError):
        return ctypes.CDLL(str(library))
    for flags in FLAGS:
        with suppress(OSError, subprocess.CalledProcessError), tempfile.TemporaryDirectory() as folder:
            built = _compile(compiler, flags, Path(folder))
            with suppress(OSError):  # where the cache cannot be written, it is compiled each time
                library.parent.mkdir(parents=True, exist_ok=True)
                with write_whole(library) as file:
                    file.write(built.read_bytes())
            return ctypes.CDLL(str(built))
    return None


def _compile(compiler: list[str], flags: list[str], folder: Path) -> Path:
    """Compile the library into a folder, and return its path.

    It is linked in a step of its own, with libm alone: -ffast-math at that step would change how the whole process
    rounds, and OpenMP has to be PyTorch's own, found when the library is loaded, as two thread pools would compete.

    Raises:
        OSError, CalledProcessError: if there is no such compiler, or it fails.
    """
    made, library = folder / "step.o", folder / "step.so"
    for command in (
        [*compiler, "-O3", "-ffast-math", "-fPIC", *flags, "-c", str(SOURCE), "-o", str(made)],
        [*compiler, "-shared", str(made), "-o", str(library), "-lm"],
    ):
        subprocess.run(command, check=True, capture_output=True)
    return library


def _processor() -> str:
    """What distinguishes processors that cannot run each other's programs, where machines share a home."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return platform.processor()
