"""Atomic writes, digests, and the cache folder."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

UNFINISHED = ".unfinished"
"""Suffix of a file that is being written, or was left by a process that died."""


def expand_home(path: str | Path) -> Path:
    """Replace `~` or `~user` at the beginning of a path by the home folder.

    Raises:
        ValueError: if there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{path} is in the home folder of an unknown user; write ./{path} for a name with ~") from None


def cache_folder(path: str | None = None) -> Path:
    """Folder for data that can be recreated: `path`, or else $XDG_CACHE_HOME/lit-lm or ~/.cache/lit-lm."""
    if path is not None:
        return expand_home(path)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit-lm"


def unfinished_path(path: Path) -> Path:
    """Where a file is written before it gets its name."""
    return path.with_name(f".{path.name}{UNFINISHED}")


@contextmanager
def write_whole(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that replaces `path` when the block ends; after an error, `path` is unchanged.

    Links, devices and pipes are the exception: they are written directly, and an error leaves what was written so far.

    Raises:
        OSError: if the file cannot be written; names it.
    """
    in_place = path.is_symlink() or (path.exists() and not path.is_file())
    written = path if in_place else unfinished_path(path)
    try:
        if in_place:
            with open(path, "wb") as file:
                yield file
            return
        with open(written, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        written.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        if not in_place:
            written.unlink(missing_ok=True)
        # a full disk, for example; what the block raises itself has no number
        if isinstance(error, OSError) and error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with `write_whole`.

    Raises:
        OSError: if the file cannot be written; names it.
    """
    with write_whole(path) as file:
        file.write(text.encode())


def sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    """Write a rename to the disk, so that it survives a power failure."""
    if os.name == "nt":  # Windows cannot open folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(*texts: str) -> str:
    """SHA-256 of some texts, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()
