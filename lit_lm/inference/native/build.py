"""Compile the C step to a shared library at first use, and cache it."""

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
"""Includes project.h, from the same folder."""
FLAGS: tuple[list[str], ...] = (["-march=native", "-fopenmp"], ["-fopenmp"], ["-march=native"], [])
"""Compiler flags, tried in this order until the library compiles and loads."""


@functools.cache
def load() -> ctypes.CDLL | None:
    """Return the compiled C step; None if no compiler can build it."""
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
            with suppress(OSError):  # a cache that is not writable: compile each time
                library.parent.mkdir(parents=True, exist_ok=True)
                with write_whole(library) as file:
                    file.write(built.read_bytes())
            return ctypes.CDLL(str(built))
    return None


def _compile(compiler: list[str], flags: list[str], folder: Path) -> Path:
    """Compile the library into a folder, and return its path.

    Linking is a separate command, with libm only: -ffast-math when linking would change the floating-point mode of the
    whole process, and OpenMP must be PyTorch's, found when the library is loaded, because two thread pools would
    compete.

    Raises:
        OSError, CalledProcessError: if the compiler does not exist or fails.
    """
    made, library = folder / "step.o", folder / "step.so"
    for command in (
        [*compiler, "-O3", "-ffast-math", "-fPIC", *flags, "-c", str(SOURCE), "-o", str(made)],
        [*compiler, "-shared", str(made), "-o", str(library), "-lm"],
    ):
        subprocess.run(command, check=True, capture_output=True)
    return library


def _processor() -> str:
    """Return the instruction sets of the processor, which may differ between machines that share a home folder."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return platform.processor()
