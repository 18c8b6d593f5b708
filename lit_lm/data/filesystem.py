"""Local files and folders, files at any URL supported by fsspec (`s3://`, `gs://`, `https://`), ranges of their bytes.

A corpus is read in shards: consecutive byte ranges of its files, of at most SHARD_BYTES. The shards depend only on the
files, so any process on any machine can read any of them.
"""

import gzip
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec

from lit_lm.files import expand_home

SHARD_BYTES = 64 * 2**20
"""Maximum size of a shard, and so the most that an interrupted preparation loses."""

MARKS = ("ETag", "etag", "md5", "mtime", "LastModified", "Last-Modified", "Content-MD5", "Digest", "created")
"""Keys under which file systems report a file's content or last change, most reliable first."""

MAX_PATH = 4096
"""Limit of Linux; globs of longer patterns take long."""

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
MAX_EXPANSION = 100
"""Maximum size of the content of a compressed file, relative to the bytes read; text rarely exceeds 20."""
FREE_EXPANSION = 2**24
"""Bytes of content that any compressed file may have."""

NUM_SAMPLES = 64
SAMPLE_BYTES = 2**16
MAX_SAMPLED_FILES = 1000
"""NUM_SAMPLES places of SAMPLE_BYTES each in at most about MAX_SAMPLED_FILES files identify their content."""


@dataclass(frozen=True)
class File:
    """A file of a source."""

    fs: fsspec.AbstractFileSystem
    path: str
    size: int
    version: str
    """Changes when the content does."""

    @property
    def name(self) -> str:
        """Path or URL, as a user would write it."""
        return self.path if is_local(self.fs) else str(self.fs.unstrip_protocol(self.path))

    @property
    def compression(self) -> str | None:
        """Compression indicated by the suffix: gzip, zstd or None."""
        return COMPRESSIONS.get(Path(self.path).suffix.lower())

    @property
    def suffix(self) -> str:
        """Suffix of the content, in lower case: .txt for a.txt.gz."""
        return Path(self.path if self.compression is None else Path(self.path).stem).suffix.lower()

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open the content for reading, decompressed.

        Raises:
            OSError: if it cannot be read.
        """
        with _of_this_process(self.fs).open(self.path, "rb") as raw:
            if self.compression is not None:
                blocks = _gunzipped(raw) if self.compression == "gzip" else _unzstandard(raw)
                raw = _Blocks(_bounded(raw, blocks))
            with io.BufferedReader(raw, 2**20) as content:  # fsspec's remote files have no readline(size)
                yield content

    def line_at(self, offset: int) -> int:
        """Line number (from 1) of byte `offset` of the content."""
        with self.open() as file:
            return 1 + sum(file.read(min(2**20, offset - at)).count(b"\n") for at in range(0, offset, 2**20))


class _Blocks(io.RawIOBase):
    """A readable file that consists of blocks."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._left = blocks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._left = memoryview(block)
        target = memoryview(buffer)
        size = min(len(target), len(self._left))
        target[:size], self._left = self._left[:size], self._left[size:]
        return size


def _bounded(raw: IO[bytes], blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Pass on the content of a compressed file while it is not too much for the bytes read so far."""
    size = 0
    for block in blocks:
        size += len(block)
        if size > FREE_EXPANSION + MAX_EXPANSION * raw.tell():
            raise OSError(
                f"its content has more than {MAX_EXPANSION} times the bytes of the file; if this is intended, "
                "decompress it"
            )
        yield block


def _gunzipped(raw: IO[bytes]) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=raw) as file:  # skips zeros at the end, unlike pyarrow
        while block := file.read(2**17):
            yield block


def _unzstandard(raw: IO[bytes]) -> Iterator[bytes]:
    import zstandard

    frame = None
    while data := raw.read(2**12):  # a block that expands as much as possible still fits in memory
        while data:
            if frame is None:  # windows as of `zstd --long=31`, which pyarrow refuses
                frame = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
            yield frame.decompress(data)
            data = frame.unused_data
            if frame.eof:
                frame = None
    if frame is not None:
        raise EOFError("it is cut short")


@dataclass(frozen=True)
class Range:
    """The documents, or row groups, of a file that start at byte `start` or later and before byte `stop`."""

    file: File
    start: int
    stop: int


def address(path: str, folder: Path = Path()) -> str:
    """Make a path absolute; a relative one is relative to `folder`. A URL is returned unchanged.

    Raises:
        ValueError: if the path is longer than MAX_PATH, or begins with the home folder of an unknown user.
    """
    if len(path) > MAX_PATH:
        raise ValueError(f"{path[:80]}... has {len(path):,} characters; a path or URL has at most {MAX_PATH:,}")
    if "://" in path:
        return path
    return str((folder / expand_home(path)).absolute())


def find_files(pattern: str) -> list[File]:
    """Files that match a path, URL or glob, or are in a folder, sorted by name; empty if there are none.

    The files of a folder include those in its subfolders, but no hidden ones.

    Raises:
        ValueError: if the protocol of a URL is unknown, or the path is a pipe or device.
        OSError: if the file system cannot be reached.
    """
    fs, path = file_system(pattern)
    if is_local(fs) and os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise ValueError(
            f"{pattern} is a pipe or device; save its content to a file, as a source is read several times"
        )
    try:
        if fs.isfile(path):
            return [_file(fs, path)]
        if is_folder(fs, path):
            matches = [match for match in fs.find(path) if not _is_hidden(match.removeprefix(path))]
        else:
            matches = fs.glob(path)
        return [_file(fs, match) for match in sorted(matches) if fs.isfile(match)]
    except (NotImplementedError, ValueError) as error:
        raise ValueError(f"{pattern} cannot be searched: {error}") from None


def _of_this_process(fs: fsspec.AbstractFileSystem) -> fsspec.AbstractFileSystem:
    """The file system, created again in a worker process: fsspec's asynchronous ones cannot be used after a fork."""
    if getattr(fs, "_pid", os.getpid()) == os.getpid():
        return fs
    return type(fs)(*fs.storage_args, **fs.storage_options)


def is_folder(fs: fsspec.AbstractFileSystem, path: str) -> bool:
    """Whether a path is a folder. Never true on a web server, which cannot list its files."""
    return not str(fs.unstrip_protocol(path)).startswith("http") and bool(fs.isdir(path))


def _is_hidden(path: str) -> bool:
    return any(name.startswith(".") for name in path.split("/"))


def sample(files: Sequence[File]) -> str:
    """Digest of parts of the local files: of everything in a small corpus, else of NUM_SAMPLES places in it.

    It finds files that were replaced by others of the same size and time. Files elsewhere are left to their `version`.

    Raises:
        OSError: if a file cannot be read.
    """
    local = [file for file in files if is_local(file.fs)]
    local = local[:: max(1, len(local) // MAX_SAMPLED_FILES)]
    step = max(SAMPLE_BYTES, sum(file.size for file in local) // NUM_SAMPLES)
    content, begin = hashlib.sha256(), 0
    for file in local:
        end = begin + file.size
        places = range(begin // step * step, end, step)
        parts = [(max(begin, place), min(end, place + SAMPLE_BYTES)) for place in places]
        if parts := [(start, stop) for start, stop in parts if start < stop]:
            with open(file.path, "rb") as raw:
                for start, stop in parts:
                    raw.seek(start - begin)
                    content.update(raw.read(stop - start))
        begin = end
    return content.hexdigest()


def file_system(place: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a path or URL, and the path in it.

    Raises:
        ValueError: if the protocol or the user of a home folder is unknown.
    """
    url = address(place)
    try:
        return fsspec.core.url_to_fs(url)  # type: ignore[no-any-return]
    except (ImportError, ValueError, TypeError) as error:  # TypeError: the file system needs arguments
        raise ValueError(f"{place} cannot be reached: {error}") from None


def _file(fs: fsspec.AbstractFileSystem, path: str) -> File:
    info = fs.info(path)
    marks = [str(info[key]) for key in MARKS if info.get(key)]
    file = File(fs, str(path), int(info["size"] or 0), marks[0] if marks else "")
    if info["size"] is None and file.compression is None:  # of other files, a range is read
        raise ValueError("its server does not report its size; download it first")
    return file


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    """Whether a file system is local."""
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def split_into_shards(files: Sequence[File]) -> list[list[Range]]:
    """Divide the bytes of the files, in order, into equal shards of at most SHARD_BYTES."""
    total = sum(file.size for file in files)
    count = max(1, -(-total // SHARD_BYTES))
    bounds = [total * number // count for number in range(count + 1)]
    divided: list[list[Range]] = [[] for _ in range(count)]
    at = number = 0
    for file in files:
        if not file.size:  # keep it for its reader to report
            divided[number].append(Range(file, 0, 0))
        start = 0
        while start < file.size:
            stop = min(file.size, start + bounds[number + 1] - at)
            divided[number].append(Range(file, start, stop))
            at, start = at + stop - start, stop
            if at == bounds[number + 1] and number + 1 < count:
                number += 1
    return divided
