"""Tokens on disk: written once, read by memory map.

A store is a folder with `tokens.bin` (ids one after the other, little-endian uint16, or uint32 when the vocabulary
needs it; END_OF_TEXT after each document) and `meta.json`. It is written under a temporary name and renamed when it is
whole, so a folder that bears a store's name is a store.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from lit_lm.data.tokenize import Chunk

FORMAT = "1"
"""Part of a store's name, and changed with what a store holds: those of another format are not found."""


@dataclass(frozen=True)
class StoreMeta:
    """What a store holds."""

    dtype: str
    tokens: int
    documents: int
    bytes: int
    """UTF-8 bytes of the text, END_OF_TEXT not counted."""
    sha256: str
    """Digest of `tokens.bin`."""

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / self.tokens


class TokenStore:
    """A finished store, opened for reading."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.meta = StoreMeta(**json.loads((path / "meta.json").read_text(encoding="utf-8")))
        self._tokens = np.memmap(path / "tokens.bin", dtype=self.meta.dtype, mode="r", shape=(self.meta.tokens,))

    def __len__(self) -> int:
        return self.meta.tokens

    def __reduce__(self) -> tuple[type["TokenStore"], tuple[Path]]:
        return TokenStore, (self.path,)  # a worker opens the file, rather than being sent it

    def read(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Ids number start to stop - 1."""
        return self._tokens[start:stop].astype(np.int64)


def open_or_write_store(path: Path, chunks: Iterable[Chunk], vocab_size: int) -> TokenStore:
    """Open the store at `path`; if there is none, write it from `chunks` first.

    Of several processes that want it at once, one writes and the others wait and open.

    Raises:
        ValueError: if the chunks have no tokens at all, or an id outside the vocabulary.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                _write(path, chunks, vocab_size)
    return TokenStore(path)


def _write(path: Path, chunks: Iterable[Chunk], vocab_size: int) -> None:
    dtype = "<u2" if vocab_size <= 2**16 else "<u4"
    tokens = documents = num_bytes = 0
    digest = hashlib.sha256()
    unfinished = path.with_name(f"{path.name}.unfinished")  # we hold the lock: nobody else writes it
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        with open(unfinished / "tokens.bin", "wb") as file:
            for chunk in chunks:
                if len(chunk.ids) and not 0 <= chunk.ids.min() <= chunk.ids.max() < vocab_size:
                    worst = chunk.ids.min() if chunk.ids.min() < 0 else chunk.ids.max()
                    raise ValueError(
                        f"the data has the token id {worst}, outside the tokenizer's 0 to {vocab_size - 1}"
                    )
                data = chunk.ids.astype(dtype).tobytes()
                file.write(data)
                digest.update(data)
                tokens += len(chunk.ids)
                documents += chunk.documents
                num_bytes += chunk.bytes
            file.flush()
            os.fsync(file.fileno())
        if not tokens:
            raise ValueError("the source has no text")
        meta = StoreMeta(dtype, tokens, documents, num_bytes, digest.hexdigest())
        with open(unfinished / "meta.json", "w", encoding="utf-8") as meta_file:
            json.dump(asdict(meta), meta_file, indent=2)
            meta_file.flush()
            os.fsync(meta_file.fileno())
        unfinished.rename(path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
