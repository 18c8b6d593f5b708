"""Diversity and repetition against values by hand, common spans against a search of all pairs of positions."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_lm.inference.text_metrics import distinct, longest_common_spans, repetition, words


class Array:
    """Token ids in memory."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = np.array(ids, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        return self.ids[start:stop]


def span_by_hand(text: list[int], training: list[int]) -> int:
    """Longest common span, from a table of common suffixes for each pair of positions."""
    longest, above = 0, [0] * (len(training) + 1)
    for token in text:
        row = [0]
        for j, other in enumerate(training):
            row.append(above[j] + 1 if token == other else 0)
        longest, above = max(longest, *row), row
    return longest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat's hat.", ["The", "cat", "'", "s", "hat", "."]),
        ("宝玉笑道：“好。”", ["宝", "玉", "笑", "道", "：", "“", "好", "。", "”"]),
        ("Él vio 3 casas", ["Él", "vio", "3", "casas"]),
        ("", []),
    ],
)
def test_words_are_words_punctuation_and_single_chinese_characters(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize(
    ("texts", "n", "expected"),
    [
        (["a b a b"], 1, 2 / 4),
        (["a b a b"], 2, 2 / 3),  # ab, ba, ab
        (["a b", "a b"], 2, 1 / 2),  # over all texts together, but not across texts
        (["a"], 2, 0.0),
    ],
)
def test_distinct_by_hand(texts: list[str], n: int, expected: float) -> None:
    assert distinct([text.split() for text in texts], n) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [("a b c d", 2, 0.0), ("a a a a", 1, 3 / 4), ("a b a b a b", 2, 3 / 5), ("a b", 4, 0.0)],
)
def test_repetition_by_hand(text: str, n: int, expected: float) -> None:
    assert repetition(text.split(), n) == pytest.approx(expected)


tokens = st.lists(st.integers(0, 2), max_size=40)


@given(st.lists(tokens, max_size=4), tokens, st.integers(1, 50))
def test_common_spans_match_a_full_search_for_any_block_size(
    texts: list[list[int]], training: list[int], block: int
) -> None:
    expected = [span_by_hand(text, training) for text in texts]
    assert longest_common_spans(texts, Array(training), block) == expected


def test_a_span_across_blocks_is_found_whole() -> None:
    training = list(range(1000))
    texts = [training[90:130], [*range(2000, 2010), *training[199:301]], training, [5000]]
    assert longest_common_spans(texts, Array(training), block=100) == [40, 102, 1000, 0]
