"""Documents to token ids."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lit_lm.data.readers import Piece
from lit_lm.text.tokenizer import Tokenizer

BATCH_BYTES = 2**20
"""Text that is handed to the tokenizer at a time."""


@dataclass(frozen=True)
class Chunk:
    """Some documents' tokens, on their way into a store."""

    ids: npt.NDArray[Any]
    """Token ids, END_OF_TEXT after each document."""
    documents: int
    """How many documents end in it."""
    bytes: int
    """Their length as UTF-8 text."""
    characters: int


def tokenize(pieces: Iterable[Piece], tokenizer: Tokenizer) -> Iterator[Chunk]:
    """The documents' tokens, encoded on all cores in batches of about BATCH_BYTES."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece[0])
        if size >= BATCH_BYTES:
            yield _encode(batch, tokenizer)
            batch, size = [], 0
    if batch:
        yield _encode(batch, tokenizer)


def _encode(batch: list[Piece], tokenizer: Tokenizer) -> Chunk:
    texts = [text for text, _ in batch]
    ids = [
        np.array(ids + [tokenizer.end_id] * ends, dtype=np.int64)
        for ids, (_, ends) in zip(tokenizer.encode_batch(texts), batch, strict=True)
    ]
    return Chunk(
        np.concatenate(ids),
        sum(ends for _, ends in batch),
        sum(len(text.encode()) for text in texts),
        sum(map(len, texts)),
    )
