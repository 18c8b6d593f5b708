"""Metrics of generated text: diversity, repetition, and spans copied from the training text."""

import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

COPIED_SPAN = 50
"""Number of consecutive tokens that a text must share with the training text to count as copied (Lee et al. 2022)."""

BLOCK = 2**20
"""Number of tokens of the training text that are processed at a time."""

_WORD = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|\w+|[^\w\s]")
_BASE = 0x9E3779B97F4A7C15
"""Base of the hashes; odd, so that it has an inverse modulo 2^64."""
_BUCKET_BITS = 20


class Tokens(Protocol):
    """Token ids that can be read in slices, such as a token store."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> npt.NDArray[np.int64]: ...


def words(text: str) -> list[str]:
    """Words, punctuation marks and single Chinese characters of a text.

    The metrics count these, so that models with different tokenizers can be compared.
    """
    return _WORD.findall(text)


def ngrams(items: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All sequences of n consecutive items."""
    return [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]


def distinct(texts: Sequence[Sequence[str]], n: int) -> float:
    """Fraction of distinct n-grams among all n-grams of the texts (distinct-n, Li et al. 2016); 0 if there are none.

    The value falls with the number and length of the texts: compare only equal numbers of texts of equal length.
    """
    found = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(found)) / len(found) if found else 0.0


def repetition(text: Sequence[str], n: int = 4) -> float:
    """Fraction of n-grams that occurred earlier in the text: 1 - distinct / all (seq-rep-n, Welleck et al. 2020)."""
    found = ngrams(text, n)
    return 1 - len(set(found)) / len(found) if found else 0.0


def longest_common_spans(texts: Sequence[Sequence[int]], training: Tokens, block: int = BLOCK) -> list[int]:
    """Length of the longest span of consecutive tokens that each text shares with the training text.

    Makes one pass over the training text in blocks, and searches each block only for spans of at least n tokens, one
    more than the longest so far: at positions whose next n tokens have the same hash as n tokens of the text. Hash
    matches are verified, so the result is exact.
    """
    spans = [_Span(np.array(text, dtype=np.int64)) for text in texts]
    overlap = max((len(text) for text in texts), default=0)
    for start in range(0, len(training), block):
        growing = [span for span in spans if span.length < len(span.text)]
        if not growing:
            break
        part = training.read(start, min(start + block + overlap, len(training)))
        hashes = _Hashes(part)
        n = min(span.length for span in growing) + 1  # the smallest that any text needs; leaves few candidates
        candidates = _find(hashes.of(n), np.concatenate([_Hashes(span.text).of(n) for span in growing]))
        for span in growing:
            span.grow(part, hashes, candidates)
    return [span.length for span in spans]


class _Span:
    """A text, and the length of the longest span that it shares with the blocks processed so far."""

    def __init__(self, text: npt.NDArray[np.int64]) -> None:
        self.text, self.hashes, self.length = text, _Hashes(text), 0

    def grow(self, part: npt.NDArray[np.int64], hashes: "_Hashes", positions: npt.NDArray[np.int64]) -> None:
        """Search for a longer span that begins at one of these positions of `part`."""
        while self.length < len(self.text) and len(positions):
            n = self.length + 1
            positions = positions[positions <= len(part) - n]
            own = self.hashes.of(n)
            positions = positions[_find(hashes.at(positions, n), own)]
            if len(positions):
                first, positions = int(positions[0]), positions[1:]
                starts = np.flatnonzero(own == hashes.at(np.array([first]), n)[0])
                self.length = max(self.length, *(_common(part[first:], self.text[start:]) for start in starts))


class _Hashes:
    """Hashes of all token spans: the sum of token * base^offset modulo 2^64, from differences of prefix sums."""

    def __init__(self, tokens: npt.NDArray[np.int64]) -> None:
        powers = np.full(len(tokens), _BASE, dtype=np.uint64)
        inverse = np.full(len(tokens), pow(_BASE, -1, 2**64), dtype=np.uint64)
        powers[:1] = inverse[:1] = 1
        self.inverse = inverse.cumprod(dtype=np.uint64)
        terms = (tokens.astype(np.uint64) + np.uint64(1)) * powers.cumprod(dtype=np.uint64)
        self.sums = np.concatenate([np.zeros(1, dtype=np.uint64), terms.cumsum(dtype=np.uint64)])

    def of(self, n: int) -> npt.NDArray[np.uint64]:
        """Hashes of the n tokens from each position on."""
        return self.at(np.arange(len(self.inverse) - n + 1), n)

    def at(self, positions: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.uint64]:
        """Hashes of the n tokens from each of these positions on."""
        found: npt.NDArray[np.uint64] = (self.sums[positions + n] - self.sums[positions]) * self.inverse[positions]
        return found


def _find(hashes: npt.NDArray[np.uint64], wanted: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Indices of the hashes that are in `wanted`; a table of the upper bits excludes most of the others quickly."""
    shift = np.uint64(64 - _BUCKET_BITS)
    table = np.zeros(2**_BUCKET_BITS, dtype=np.bool_)
    table[wanted >> shift] = True
    near = np.flatnonzero(table[hashes >> shift])
    return near[np.isin(hashes[near], wanted)]


def _common(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> int:
    """Length of the common prefix of a and b."""
    size = min(len(a), len(b))
    different = np.flatnonzero(a[:size] != b[:size])
    return int(different[0]) if len(different) else size
