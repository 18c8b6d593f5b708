"""Token ids: how they are stored, and those in .npy and .bin files, range by range."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lit_lm.data.filesystem import File

Ids = npt.NDArray[np.int64]
"""Token ids that are computed with."""
StoredIds = npt.NDArray[np.integer[Any]]
"""Token ids in the type that they are stored in."""

ID_SUFFIXES = (".npy", ".bin")
BLOCK_IDS = 2**20
SHARD_IDS = 2**25
"""Ids that are prepared at once."""


def id_dtype(vocab_size: int) -> str:
    """The smallest type that stores a vocabulary's ids: uint16 or uint32, little-endian."""
    return "<u2" if vocab_size <= 2**16 else "<u4"


@dataclass(frozen=True)
class IdRange:
    """The ids number start to stop - 1 of a file."""

    file: File
    dtype: np.dtype[np.generic]
    offset: int
    """Byte of the file at which its ids begin."""
    start: int
    stop: int

    def blocks(self) -> Iterator[Ids]:
        """The ids, as often as they are asked for, in blocks of at most BLOCK_IDS."""
        with self.file.open() as file:
            file.seek(self.offset + self.start * self.dtype.itemsize)
            for first in range(self.start, self.stop, BLOCK_IDS):
                size = min(BLOCK_IDS, self.stop - first) * self.dtype.itemsize
                yield np.frombuffer(file.read(size), self.dtype).astype(np.int64)


def id_ranges(files: Sequence[File], bin_dtype: str) -> list[IdRange]:
    """The ids of the files, in ranges of at most SHARD_IDS.

    Raises:
        ValueError: if a file does not hold a row of integers.
        OSError: if one cannot be read.
    """
    return [
        replace(whole, start=start, stop=min(start + SHARD_IDS, whole.stop))
        for whole in (_open(file, bin_dtype) for file in files)
        for start in range(0, whole.stop, SHARD_IDS)
    ]


def part_of_ids(ranges: Sequence[IdRange], fraction: float, *, train: bool) -> list[IdRange]:
    """All ids but the last `fraction` of them, for training, or the last."""
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
        raise ValueError(f"{file.name} is compressed; unpack it: token ids are read in parts")
    try:
        dtype, offset = _npy_header(file) if file.suffix == ".npy" else (np.dtype(bin_dtype), 0)
        if (file.size - offset) % dtype.itemsize:
            raise ValueError(f"{file.size - offset} bytes are not a whole number of {dtype}")
    except ValueError as error:  # also what numpy raises for what is no .npy
        raise ValueError(f"{file.name} is not a file of token ids: {error}") from None
    return IdRange(file, dtype, offset, 0, (file.size - offset) // dtype.itemsize)


def _npy_header(file: File) -> tuple[np.dtype[np.generic], int]:
    with file.open() as content:
        version = np.lib.format.read_magic(content)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(content)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        if len(shape) != 1 or dtype.kind not in "iu":
            raise ValueError(f"it holds {dtype} of shape {shape}, not a row of integers")
        if (present := (file.size - content.tell()) // dtype.itemsize) < shape[0]:
            raise ValueError(f"it has {present} of its {shape[0]} ids")
        return dtype, content.tell()
