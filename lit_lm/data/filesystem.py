"""Local files, files at any URL supported by fsspec (`s3://`, `gs://`, `https://`), and ranges of their bytes.

A corpus is read in shards: consecutive byte ranges of its files, of at most SHARD_BYTES. The shards depend only on the
files, so any process on any machine can read any of them.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import fsspec

SHARD_BYTES = 64 * 2**20
"""Maximum size of a shard, and so the most that an interrupted preparation loses."""

MARKS = ("ETag", "etag", "md5", "mtime", "LastModified", "Last-Modified", "Content-MD5", "Digest", "created")
"""Keys under which file systems report a file's content or last change, most reliable first."""

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


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
        with self.fs.open(self.path, "rb") as raw:
            if self.compression is not None:
                import pyarrow as pa  # detects truncated files, unlike zstandard

                raw = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), self.compression)
            with io.BufferedReader(raw, 2**20) as content:  # fsspec's remote files have no readline(size)
                yield content

    def line_at(self, offset: int) -> int:
        """Line number (from 1) of byte `offset` of the content."""
        with self.open() as file:
            return 1 + sum(file.read(min(2**20, offset - at)).count(b"\n") for at in range(0, offset, 2**20))


@dataclass(frozen=True)
class Range:
    """The documents, or row groups, of a file that start at byte `start` or later and before byte `stop`."""

    file: File
    start: int
    stop: int


def address(path: str, folder: Path = Path()) -> str:
    """Make a path absolute; a relative one is relative to `folder`. A URL is returned unchanged."""
    return path if "://" in path else str((folder / Path(path).expanduser()).absolute())


def find_files(pattern: str) -> list[File]:
    """Files that match a path, URL or glob, sorted by name; empty if there are none.

    Raises:
        ValueError: if the protocol of a URL is unknown.
        OSError: if the file system cannot be reached.
    """
    fs, path = file_system(pattern)
    try:
        paths = [path] if fs.isfile(path) else sorted(match for match in fs.glob(path) if fs.isfile(match))
        return [_file(fs, path) for path in paths]
    except (NotImplementedError, ValueError) as error:
        raise ValueError(f"{pattern} cannot be searched: {error}") from None


def file_system(place: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a path or URL, and the path in it.

    Raises:
        ValueError: if the protocol is unknown.
    """
    try:
        return fsspec.core.url_to_fs(address(place))  # type: ignore[no-any-return]
    except (ImportError, ValueError) as error:
        raise ValueError(f"{place} cannot be reached: {error}") from None


def _file(fs: fsspec.AbstractFileSystem, path: str) -> File:
    info = fs.info(path)
    marks = [str(info[key]) for key in MARKS if info.get(key)]
    return File(fs, str(path), int(info["size"] or 0), marks[0] if marks else "")


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
