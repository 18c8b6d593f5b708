"""Ids of documents on their way into a store, against the tokenizer's own."""

import numpy as np
import pytest

from lit_lm.data import tokenize as module
from lit_lm.data.tokenize import tokenize
from lit_lm.text.tokenizer import Tokenizer

DOCUMENTS = ["A dog.", "Two dogs, Grüße 🦊", "从前有一只小狗。", "", "the letters <|endoftext|> are text"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(DOCUMENTS, 270)


@pytest.mark.parametrize("batch_bytes", [1, 20, 2**20])
def test_the_end_comes_after_each_document_and_everything_is_counted(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, batch_bytes: int
) -> None:
    monkeypatch.setattr(module, "BATCH_BYTES", batch_bytes)
    chunks = list(tokenize(((text, True) for text in DOCUMENTS), tokenizer))
    expected: list[int] = []
    for document in DOCUMENTS:
        expected += [*tokenizer.encode(document), tokenizer.end_id]
    ids = np.concatenate([chunk.ids for chunk in chunks])
    assert ids.tolist() == expected
    assert (ids == tokenizer.end_id).sum() == len(DOCUMENTS)
    assert sum(chunk.documents for chunk in chunks) == len(DOCUMENTS)
    assert sum(chunk.bytes for chunk in chunks) == len("".join(DOCUMENTS).encode())
    assert sum(chunk.characters for chunk in chunks) == len("".join(DOCUMENTS))


def test_no_end_comes_between_the_pieces_of_a_document(tokenizer: Tokenizer) -> None:
    (chunk,) = tokenize([("A dog.", False), (" Two", False), ("", True), ("Three", True)], tokenizer)
    first, second, third = (tokenizer.encode(text) for text in ("A dog.", " Two", "Three"))
    assert chunk.ids.tolist() == [*first, *second, tokenizer.end_id, *third, tokenizer.end_id]
    assert chunk.documents == 2


def test_nothing_gives_nothing(tokenizer: Tokenizer) -> None:
    assert list(tokenize([], tokenizer)) == []
