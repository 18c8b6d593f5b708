"""Documents to token ids: exactly those of the library `tokenizers`, several times as fast where that is possible.

A byte-level BPE goes through `fast_bpe`, and a sample of each batch is encoded by the library too; everything else goes
through the library.
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
"""Size of the text that is encoded at a time."""
SAMPLE_CHARACTERS = 2**10
"""Size of the sample of each batch that both libraries encode."""
MAX_WORKERS = 16
"""One thread reads, and cannot keep more busy."""
CUT = re.compile(r"\S(?=[ \n])")
"""Where one pre-token ends and another begins in any text: no pre-token has white space after another character."""


@dataclass(frozen=True)
class Chunk:
    """Some documents' tokens, on their way into a store."""

    ids: StoredIds
    """Token ids, END_OF_TEXT after each document."""
    documents: int
    """How many documents end here."""
    bytes: int
    """The text's length as UTF-8."""
    characters: int
    """The text's length in Unicode code points."""


@dataclass(frozen=True)
class _Batch:
    texts: list[str]
    ended: bool
    """False for a part of a long document that is not its last."""


def tokenize(parts: Iterable[TextPart], tokenizer: Tokenizer) -> Iterator[Chunk]:
    """The documents' tokens, encoded on all cores, in the documents' order.

    A chunk is what one batch of about BATCH_CHARACTERS gave. At most two batches a core are in memory; for a byte-level
    BPE a long document is cut into several, so memory does not grow with it unless it has no blanks.

    Raises:
        ValueError: if the two libraries give a sample different ids.
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
    """Batches to chunks, by tiktoken where it can, by tokenizers where it cannot."""

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
