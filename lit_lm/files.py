"""Files that appear under their name only when they are whole and on the disk, and where to cache some."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

UNFINISHED = ".unfinished"
"""Suffix of a file that is being written, or was when its process died."""


def cache_folder() -> Path:
    """Where what can be made again is kept: lit-lm in $XDG_CACHE_HOME, or else in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit-lm"


@contextmanager
def write_whole(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to write that replaces `path` when the block ends; after an error nothing has changed.

    A link is followed, and a device or pipe is written as it is: neither can be replaced.

    Raises:
        OSError: naming the file, if it cannot be written.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        with open(path, "wb") as file:
            yield file
        return
    unfinished = path.with_name(f".{path.name}{UNFINISHED}")
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a full disk, for instance
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text by `write_whole`.

    Raises:
        OSError: naming the file, if it cannot be written.
    """
    with write_whole(path) as file:
        file.write(text.encode())


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    """Write a rename to the disk, so that it survives a power failure."""
    if os.name == "nt":  # Windows opens no folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
