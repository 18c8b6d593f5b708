"""Token ids: their storage types, and reading them from .npy and .bin files in ranges.

A .bin file has consecutive ids without a header (nanoGPT, llama2.c), or follows the header of llm.c.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from tokenize import TokenError
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lit_lm.data.filesystem import File

Ids = npt.NDArray[np.int64]
"""Token ids for computation."""
StoredIds = npt.NDArray[np.integer[Any]]
"""Token ids in their storage type."""

BinDtype = Literal["uint16", "uint32", "int32"]

ID_SUFFIXES = (".npy", ".bin")
LLM_C_HEADER_BYTES = 256 * 4
LLM_C_TYPES = {20240520: "<u2", 20240801: "<u4"}
"""Type of the ids for each first number in a header of llm.c. Its third number is the number of ids."""
LLM_C_VERSIONS = range(1, 8)
"""Possible second numbers."""
HEAD_IDS = 2**14
"""Ids at the beginning of a headerless file that must look like ids of its type."""
MIN_PAIRS = 16
"""Minimum number of pairs of ids for that."""
MAX_HIGH = 16
"""More than the high half of any 32-bit id: no vocabulary has 2**20 tokens."""
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
        npy = file.suffix == ".npy"
        dtype, offset, declared = _npy_header(file) if npy else _bin_header(file, np.dtype(bin_dtype))
        count, rest = divmod(file.size - offset, dtype.itemsize)
        if declared is None and rest:
            raise ValueError(f"{file.size - offset} bytes are not a whole number of {dtype}")
        if declared is not None and count < declared:
            raise ValueError(f"it has only {count} of its {declared} ids")
        if declared is not None and (count > declared or rest):
            raise ValueError(f"its header declares {declared} ids of {dtype}, but {file.size - offset} bytes follow it")
    except (ValueError, RecursionError, MemoryError, TokenError) as error:  # numpy raises them for a bad .npy
        raise ValueError(f"{file.name} is not a file of token ids: {error}") from None
    return IdRange(file, dtype, offset, 0, count)


Header = tuple[np.dtype[np.generic], int, int | None]
"""Type of the ids, byte offset of the first one, and their number if the file declares it."""


def _npy_header(file: File) -> Header:
    with file.open() as content:
        version = np.lib.format.read_magic(content)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(content)
        if dtype.hasobject:
            raise ValueError("it contains Python objects")
        if len(shape) != 1 or dtype.kind not in "iu":
            raise ValueError(f"it contains {dtype} of shape {shape}, not a 1-D array of integers")
        return dtype, content.tell(), shape[0]


def _bin_header(file: File, dtype: np.dtype[np.generic]) -> Header:
    with file.open() as content:
        head = content.read(max(LLM_C_HEADER_BYTES, HEAD_IDS * dtype.itemsize))
    magic, version = np.frombuffer(head[:8].ljust(8, b"\0"), "<i4").tolist()
    if magic in LLM_C_TYPES and version in LLM_C_VERSIONS:
        if file.size < LLM_C_HEADER_BYTES:
            raise ValueError("its header of llm.c is cut short")
        return np.dtype(LLM_C_TYPES[magic]), LLM_C_HEADER_BYTES, int(np.frombuffer(head, "<i4", 1, offset=8)[0])
    _check_width(head, dtype)
    return dtype, 0, None


def _check_width(head: bytes, dtype: np.dtype[np.generic]) -> None:
    """Check that the beginning of a headerless file does not have ids of another width."""
    size = dtype.itemsize
    values = np.frombuffer(head[: len(head) // (2 * size) * (2 * size)], f"<u{size}").astype(np.int64)
    low, high = values[::2], values[1::2]
    if len(high) < MIN_PAIRS:
        return
    # the high half of an id twice as wide is almost 0, or has all bits set in a negative id
    if low.any() and (not high.any() or (low.max() > MAX_HIGH and ((high + 1) % 2 ** (8 * size) <= MAX_HIGH).all())):
        remedy = "pass --data.bin_dtype uint32" if size == 2 else "save them as .npy"
        raise ValueError(f"its ids seem to have {16 * size} bits, not the {8 * size} of {dtype}; {remedy}")
    if size == 4 and np.median(values) >= 2**24:
        raise ValueError(f"its ids seem to have 16 bits, not the 32 of {dtype}; pass --data.bin_dtype uint16")
