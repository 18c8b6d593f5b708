"""Compile the C files of this folder to shared libraries at first use, and cache them."""

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

FOLDER = Path(__file__).parent
OPTIONS = {
    "attention": ["-fno-math-errno", "-fno-trapping-math"],
    "step": ["-ffast-math"],
}
"""Each C file, without `.c`, and its own compiler flags."""
FLAGS: tuple[list[str], ...] = (["-march=native", "-fopenmp"], ["-fopenmp"], ["-march=native"], [])
"""More compiler flags, tried in this order until the library compiles and loads."""


@functools.cache
def load(name: str) -> ctypes.CDLL | None:
    """Return the library compiled from a C file of OPTIONS; None if no compiler can build it."""
    try:
        compiler = shlex.split(os.environ.get("CC", "cc"))
    except ValueError:
        return None
    text = [path.read_text(encoding="utf-8") for path in [FOLDER / f"{name}.c", *sorted(FOLDER.glob("*.h"))]]
    known = (text, compiler, OPTIONS[name], FLAGS, platform.machine(), _processor(), torch.__version__)
    digest = hashlib.blake2b(repr(known).encode(), digest_size=8).hexdigest()
    library = cache_folder() / "native" / f"{name}-{digest}.so"
    with suppress(OSError):
        return ctypes.CDLL(str(library))
    for flags in FLAGS:
        with suppress(OSError, subprocess.CalledProcessError), tempfile.TemporaryDirectory() as folder:
            built = _compile(compiler, name, flags, Path(folder))
            with suppress(OSError):  # a cache that is not writable: compile each time
                library.parent.mkdir(parents=True, exist_ok=True)
                with write_whole(library) as file:
                    file.write(built.read_bytes())
            return ctypes.CDLL(str(built))
    return None


def _compile(compiler: list[str], name: str, flags: list[str], folder: Path) -> Path:
    """Compile the library into a folder, and return its path.

    Linking is a separate command, with libm only: -ffast-math when linking would change the floating-point mode of the
    whole process, and OpenMP must be PyTorch's, found when the library is loaded, because two thread pools would
    compete.

    Raises:
        OSError, CalledProcessError: if the compiler does not exist or fails.
    """
    made, library = folder / f"{name}.o", folder / f"{name}.so"
    for command in (
        [*compiler, "-O3", "-fPIC", *OPTIONS[name], *flags, "-c", str(FOLDER / f"{name}.c"), "-o", str(made)],
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
