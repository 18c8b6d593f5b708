"""Documents to token ids: exactly those of the library `tokenizers`, but several times as fast where possible.

A byte-level BPE is encoded by `fast_bpe`, and a sample of each batch also by the library, to compare them; all other
tokenizers are encoded by the library.
"""

import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import tiktoken
import tokenizers

from lit_lm.data.fast_bpe import ByteLevelBPE
from lit_lm.data.ids import StoredIds, id_dtype
from lit_lm.data.readers import TextPart
from lit_lm.tokenizer.tokenizer import Tokenizer

BATCH_CHARACTERS = 2**18
"""Characters encoded at a time."""
SAMPLE_CHARACTERS = 2**10
"""Characters of each batch that both libraries encode."""
MAX_WORKERS = 16
"""Maximum number of encoding threads; the one reading thread cannot keep more busy."""
CUT = re.compile(r"\S(?=[ \n])")
"""A boundary between pre-tokens in any text: within a pre-token, white space never follows another character."""


@dataclass(frozen=True)
class Chunk:
    """Tokens of some documents, to be written to a store."""

    ids: StoredIds
    """Token ids, with END_OF_TEXT after each document."""
    documents: int
    """Number of documents that end in the chunk."""
    bytes: int
    """UTF-8 bytes of the text."""
    characters: int
    """Unicode code points of the text."""


@dataclass(frozen=True)
class _Batch:
    texts: list[str]
    ended: bool
    """Whether the texts end their documents; False for any part of a long document but its last."""


def tokenize(parts: Iterable[TextPart], tokenizer: Tokenizer) -> Iterator[Chunk]:
    """Encode documents on all cores; yield their tokens in the order of the documents.

    A chunk has the tokens of one batch of about BATCH_CHARACTERS. At most two batches per thread are in memory. For a
    byte-level BPE, long documents are cut into several batches, so memory is bounded unless a document has no blanks.

    Raises:
        ValueError: if the two libraries give different ids for a sample.
    """
    encoder = _Encoder(tokenizer)
    workers = min(os.cpu_count() or 1, MAX_WORKERS)
    pending: deque[Future[Chunk]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for batch in _batches(parts, cut=encoder.fast is not None):
                if len(pending) == 2 * workers:
                    yield pending.popleft().result()
                pending.append(pool.submit(encoder.encode, batch))
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _batches(parts: Iterable[TextPart], *, cut: bool) -> Iterator[_Batch]:
    texts: list[str] = []
    size = 0
    for text, ends in parts:
        start = 0
        cuts = []
        while cut and (match := CUT.search(text, start + BATCH_CHARACTERS)):
            cuts.append(_Batch([text[start : match.end()]], ended=False))
            start = match.end()
        if not ends:
            cuts.append(_Batch([text[start:]], ended=False))
        if cuts and texts:
            yield _Batch(texts, ended=True)
            texts, size = [], 0
        yield from cuts
        if ends:
            texts.append(text[start:])
            size += len(texts[-1])
        if size >= BATCH_CHARACTERS:
            yield _Batch(texts, ended=True)
            texts, size = [], 0
    if texts:
        yield _Batch(texts, ended=True)


class _Encoder:
    """Encodes batches to chunks, with tiktoken where possible, else with tokenizers."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.fast = ByteLevelBPE.of(tokenizer)
        self._tokenizer = tokenizer
        self._dtype = id_dtype(tokenizer.vocab_size)

    def encode(self, batch: _Batch) -> Chunk:
        characters = sum(map(len, batch.texts))
        num_bytes = sum(len(text) if text.isascii() else len(text.encode()) for text in batch.texts)
        ids = self.fast.encode(batch.texts, ended=batch.ended) if self.fast else None
        if ids is None:
            ids = self._by_library(batch)
        else:
            self._compare(batch.texts[0], ids)
        return Chunk(ids, len(batch.texts) if batch.ended else 0, num_bytes, characters)

    def _by_library(self, batch: _Batch) -> StoredIds:
        end = [self._tokenizer.end_id] if batch.ended else []
        rows = self._tokenizer.encode_batch(batch.texts)
        return np.concatenate([np.array(row + end, dtype=self._dtype) for row in rows])

    def _compare(self, text: str, ids: StoredIds) -> None:
        if len(text) > SAMPLE_CHARACTERS:
            match = CUT.search(text, SAMPLE_CHARACTERS, 4 * SAMPLE_CHARACTERS)
            if match is None:
                return
            text = text[: match.end()]
        expected = self._tokenizer.encode(text)
        if ids[: len(expected)].tolist() != expected:
            raise ValueError(
                f"tiktoken {tiktoken.__version__} and tokenizers {tokenizers.__version__} give different ids; "
                f"install other versions, and please report the text: {text!r}"
            )
