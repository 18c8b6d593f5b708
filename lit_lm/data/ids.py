"""Token ids: their storage types, and reading them from .npy and .bin files in ranges."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lit_lm.data.filesystem import File

Ids = npt.NDArray[np.int64]
"""Token ids for computation."""
StoredIds = npt.NDArray[np.integer[Any]]
"""Token ids in their storage type."""

ID_SUFFIXES = (".npy", ".bin")
BLOCK_IDS = 2**20
SHARD_IDS = 2**25
"""Maximum number of ids per shard."""


def id_dtype(vocab_size: int) -> str:
    """Smallest storage type for the ids of a vocabulary: uint16 or uint32, little-endian."""
    return "<u2" if vocab_size <= 2**16 else "<u4"


@dataclass(frozen=True)
class IdRange:
    """Ids `start` to `stop` - 1 of a file."""

    file: File
    dtype: np.dtype[np.generic]
    offset: int
    """Byte offset of the file's first id."""
    start: int
    stop: int

    def blocks(self) -> Iterator[Ids]:
        """Read the ids in blocks of at most BLOCK_IDS."""
        with self.file.open() as file:
            file.seek(self.offset + self.start * self.dtype.itemsize)
            for first in range(self.start, self.stop, BLOCK_IDS):
                size = min(BLOCK_IDS, self.stop - first) * self.dtype.itemsize
                yield np.frombuffer(file.read(size), self.dtype).astype(np.int64)


def id_ranges(files: Sequence[File], bin_dtype: str) -> list[IdRange]:
    """The ids of the files, in ranges of at most SHARD_IDS.

    Raises:
        ValueError: if a file does not contain a 1-D array of integers.
        OSError: if a file cannot be read.
    """
    return [
        replace(whole, start=start, stop=min(start + SHARD_IDS, whole.stop))
        for whole in (_open(file, bin_dtype) for file in files)
        for start in range(0, whole.stop, SHARD_IDS)
    ]


def part_of_ids(ranges: Sequence[IdRange], fraction: float, *, train: bool) -> list[IdRange]:
    """The ids without the last `fraction` of them if `train`, else the last `fraction`."""
    cut, at = int(sum(r.stop - r.start for r in ranges) * (1 - fraction)), 0
    parts = []
    for part in ranges:
        middle = min(max(part.start, part.start + cut - at), part.stop)
        parts.append(replace(part, stop=middle) if train else replace(part, start=middle))
        at += part.stop - part.start
    return [part for part in parts if part.stop > part.start]


def _open(file: File, bin_dtype: str) -> IdRange:
    if file.size == 0:
        raise ValueError(f"{file.name} is empty")
    if file.compression is not None:
        raise ValueError(f"{file.name} is compressed; decompress it: token ids need random access")
    try:
        dtype, offset = _npy_header(file) if file.suffix == ".npy" else (np.dtype(bin_dtype), 0)
        if (file.size - offset) % dtype.itemsize:
            raise ValueError(f"{file.size - offset} bytes are not a whole number of {dtype}")
    except ValueError as error:  # numpy raises it too if the file is not a .npy
        raise ValueError(f"{file.name} is not a file of token ids: {error}") from None
    return IdRange(file, dtype, offset, 0, (file.size - offset) // dtype.itemsize)


def _npy_header(file: File) -> tuple[np.dtype[np.generic], int]:
    with file.open() as content:
        version = np.lib.format.read_magic(content)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(content)
        if dtype.hasobject:
            raise ValueError("it contains Python objects")
        if len(shape) != 1 or dtype.kind not in "iu":
            raise ValueError(f"it contains {dtype} of shape {shape}, not a 1-D array of integers")
        if (present := (file.size - content.tell()) // dtype.itemsize) < shape[0]:
            raise ValueError(f"it has only {present} of its {shape[0]} ids")
        return dtype, content.tell()
