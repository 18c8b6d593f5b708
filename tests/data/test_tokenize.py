"""tokenize gives the ids of the library `tokenizers` for any text and any tokenizer, whichever library encodes."""

import json
import sys
import threading
import unicodedata
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers

from lit_lm.data import fast_bpe, stories, tokenize
from lit_lm.data.fast_bpe import ByteLevelBPE
from lit_lm.data.ids import id_dtype
from lit_lm.data.tokenize import Chunk
from lit_lm.tokenizer.formats import byte_letters
from lit_lm.tokenizer.tokenizer import Tokenizer
from lit_lm.tokenizer.train import END_OF_TEXT

BLANKS = "  \n\r\t\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000\u200b\ufeff"
SIGNS = "'’.,!?-—_\"“”«»()<>|{}$€+=\0\x7f\ufffd\u200d\ufe0f🦊👩🏽🇫🇷"
LETTERS = "adelmnorstvxyzADLMRST ßéñøſİıǅʰªДдЯאبتषक字仮あ한\U00020000\U0001e900"
NUMBERS = "0123456789²½Ⅷ٣७〇㊿\U0001d7d8"
MARKS = "\u0301\u0308\u0345\u093f\u20dd\u0e31"
WORDS = ["don't", "we’ll", "I'Ve", "'re", " the", "dog's", END_OF_TEXT, "<|endof", "text|>", "\r\n", "\n\n ", "   x"]
ONE_OF_EACH_PLANE = "".join(chr(plane * 0x10000 + 0x1234) for plane in range(17))
DOCUMENTS = ["A dog.", "Two dogs, Grüße 🦊", "从前有一只小狗。", "", f"the letters {END_OF_TEXT} are text", "dogs"]
TRUNCATION = {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
NASTY = st.lists(
    st.sampled_from([*BLANKS, *SIGNS, *LETTERS, *NUMBERS, *MARKS, *ONE_OF_EACH_PLANE, *WORDS])
    | st.characters(exclude_categories=["Cs"]),
    max_size=30,
).map("".join)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    nasty = [BLANKS * 3, SIGNS * 3, LETTERS * 3, NUMBERS * 3, "we’ll don't I've " * 3, "    \n\n\n   " * 3]
    return Tokenizer.train([*nasty, *DOCUMENTS, *stories.stories("train", 30_000)], 600)


@pytest.fixture(scope="module")
def fast(tokenizer: Tokenizer) -> ByteLevelBPE:
    found = ByteLevelBPE.of(tokenizer)
    assert found is not None
    return found


def tokenized(documents: Iterable[str], tokenizer: Tokenizer) -> Generator[Chunk]:
    """The chunks of documents with one part each."""
    yield from tokenize.tokenize(((document, True) for document in documents), tokenizer)


def ids(chunks: Iterator[Chunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.ids.tolist()]


def by_library(documents: list[str], tokenizer: Tokenizer) -> list[int]:
    encodings = tokenizer.backend.encode_batch(documents, add_special_tokens=False)
    return [token for encoding in encodings for token in [*encoding.ids, tokenizer.end_id]]


@given(documents=st.lists(NASTY | st.text(), max_size=5), batch=st.integers(1, 60))
@settings(max_examples=50)
def test_ids_of_difficult_text_equal_those_of_the_library(
    tokenizer: Tokenizer, documents: list[str], batch: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenize, "BATCH_CHARACTERS", batch)
        assert ids(tokenized(documents, tokenizer)) == by_library(documents, tokenizer)


def test_ids_of_stories_equal_those_of_the_library(tokenizer: Tokenizer) -> None:
    documents = list(stories.stories("train", 300_000))
    assert ids(tokenized(documents, tokenizer)) == by_library(documents, tokenizer)


@given(text=NASTY)
@settings(max_examples=500)
def test_tiktoken_encodes_all_text_without_the_end_token(tokenizer: Tokenizer, fast: ByteLevelBPE, text: str) -> None:
    found = fast.encode([text])
    assert (found is None) == (END_OF_TEXT in text)
    assert found is None or found.tolist() == by_library([text], tokenizer)


@given(st.lists(st.sampled_from("abc"), max_size=12).map("".join), st.text("abc ", max_size=200))
def test_ids_equal_those_of_the_library_for_any_merges(learned: str, text: str) -> None:
    tokenizer = Tokenizer.train([learned] * 3, 280)
    fast = ByteLevelBPE.of(tokenizer)
    assert fast is not None
    found = fast.encode([text])
    assert found is not None
    assert found.tolist() == by_library([text], tokenizer)


def test_both_libraries_classify_every_character_alike() -> None:
    characters = fast_bpe._Characters()
    assert all(characters.agree(chr(code)) for code in range(128)), "ASCII is not tried in use"
    rest = (chr(code) for code in range(128, sys.maxunicode + 1, 7))
    disputed = [c for c in rest if unicodedata.category(c) not in ("Cs", "Co", "Cn") and not characters.trusted(c)]
    assert disputed == []  # holds if both libraries support at least Python's version of Unicode


def test_text_with_a_disputed_character_is_encoded_by_the_library(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_bpe, "GPT2_PATTERN", fast_bpe.GPT2_PATTERN.replace(r"\p{L}", r"[\p{L}--\p{Greek}]"))
    fast = ByteLevelBPE.of(tokenizer)
    assert fast is not None
    assert fast.encode(["ein ä"]) is not None
    assert fast.encode(["an α"]) is None
    assert fast.encode(["a β"]) is None
    documents = ["an α, γαλα", "dogs", "a ß"]
    assert ids(tokenized(documents, tokenizer)) == by_library(documents, tokenizer)


def test_libraries_that_give_different_ids_are_reported(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_bpe, "GPT2_PATTERN", "(?s:.)")  # a character is a pre-token
    with pytest.raises(ValueError, match=r"^tiktoken .* give different ids; .*: 'two dogs'$"):
        list(tokenized(["two dogs", "a cat"], tokenizer))


@pytest.mark.parametrize("batch", [1, 20, 2**18])
def test_each_document_has_an_end_token_and_chunks_have_the_right_counts(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(tokenize, "BATCH_CHARACTERS", batch)
    chunks = list(tokenized(iter(DOCUMENTS), tokenizer))
    all_ids = np.concatenate([chunk.ids for chunk in chunks])
    assert (all_ids == tokenizer.end_id).sum() == len(DOCUMENTS)
    assert sum(chunk.documents for chunk in chunks) == len(DOCUMENTS)
    assert sum(chunk.bytes for chunk in chunks) == len("".join(DOCUMENTS).encode())
    assert sum(chunk.characters for chunk in chunks) == len("".join(DOCUMENTS))
    assert all((chunk.ids == tokenizer.end_id).sum() == chunk.documents for chunk in chunks)


def test_ids_have_the_storage_type(tokenizer: Tokenizer) -> None:
    (chunk,) = tokenized(["A dog."], tokenizer)
    assert chunk.ids.dtype == id_dtype(tokenizer.vocab_size) == "<u2"
    assert [id_dtype(size) for size in (2**16, 2**16 + 1)] == ["<u2", "<u4"]


def test_a_chunk_is_yielded_as_soon_as_its_batch_is_full(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize, "BATCH_CHARACTERS", 10)
    chunks = list(tokenized(["12345", "12345", "1234567890", "1"], tokenizer))
    assert [chunk.documents for chunk in chunks] == [2, 1, 1]
    assert list(tokenized([], tokenizer)) == []


def test_a_long_document_is_cut_between_pre_tokens(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize, "BATCH_CHARACTERS", 10)
    chunks = list(tokenized(["a", "one two  three\n four five six   \n seven", "b"], tokenizer))
    assert [tokenizer.decode(chunk.ids.tolist()) for chunk in chunks] == [
        f"a{END_OF_TEXT}",
        "one two  three",
        "\n four five",
        f" six   \n seven{END_OF_TEXT}",
        f"b{END_OF_TEXT}",
    ]
    assert [chunk.documents for chunk in chunks] == [1, 0, 0, 1, 1]


def test_only_the_last_part_has_an_end_token(tokenizer: Tokenizer) -> None:
    chunks = list(tokenize.tokenize([("a", True), ("one", False), (" two", False), ("", True), ("b", True)], tokenizer))
    text = tokenizer.decode(ids(iter(chunks)))
    assert text == f"a{END_OF_TEXT}one two{END_OF_TEXT}b{END_OF_TEXT}"
    assert sum(chunk.documents for chunk in chunks) == 3


def test_at_most_two_batches_per_thread_are_read_ahead(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize, "BATCH_CHARACTERS", 1)
    monkeypatch.setattr(tokenize, "MAX_WORKERS", 1)
    read = []
    chunks = tokenized((read.append(number) or "x" for number in range(100)), tokenizer)
    for done in range(1, 50):
        next(chunks)
        assert len(read) == done + 2
    before = threading.active_count()
    chunks.close()
    assert threading.active_count() == before - 1
    assert len(read) == 51


@pytest.mark.parametrize("text", ["\n " * 550_000 + "x", "a" * 100_000, "字" * 40_000])
def test_very_long_pre_tokens_are_encoded(tokenizer: Tokenizer, text: str) -> None:
    assert ids(tokenized(["a", text, "b"], tokenizer)) == by_library(["a", text, "b"], tokenizer)


def changed(tokenizer: Tokenizer, change: Callable[[Any], Any]) -> Tokenizer:
    spec = json.loads(tokenizer.to_json())
    change(spec)
    return Tokenizer.from_json(json.dumps(spec))


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec.update(normalizer={"type": "NFC"}),
        lambda spec: spec["pre_tokenizer"].update(add_prefix_space=True),
        lambda spec: spec["pre_tokenizer"].update(use_regex=False),
        lambda spec: spec.update(pre_tokenizer=None),
        lambda spec: spec.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [spec["pre_tokenizer"]]}),
        lambda spec: spec["model"].update(ignore_merges=True),
        lambda spec: spec["model"].update(byte_fallback=True),
        lambda spec: spec["model"]["merges"].reverse(),
        lambda spec: spec["model"]["vocab"].update(unreachable=600),
        lambda spec: spec["added_tokens"].append(spec["added_tokens"][0] | {"id": 600, "content": "<|user|>"}),
    ],
)
def test_any_other_tokenizer_is_encoded_by_the_library(tokenizer: Tokenizer, change: Callable[[Any], Any]) -> None:
    other = changed(tokenizer, change)
    assert ByteLevelBPE.of(other) is None
    assert ids(tokenized(DOCUMENTS[:4], other)) == by_library(DOCUMENTS[:4], other)


def test_a_vocabulary_with_a_token_that_no_merges_make_is_refused() -> None:
    """abc is in the vocabulary, but b and c are merged before a and b."""
    names = list(byte_letters().values())
    merges = [("b", "c"), ("a", "b"), ("ab", "c")]
    vocab = {token: number for number, token in enumerate([*names, "bc", "ab", "abc", END_OF_TEXT])}
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens([END_OF_TEXT])
    assert ByteLevelBPE.of(Tokenizer(backend)) is None


def test_another_model_is_encoded_by_the_library() -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"?": 0, "dogs": 1, END_OF_TEXT: 2}, unk_token="?"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens([END_OF_TEXT])
    chunks = tokenized(["two DOGS", "", "dogs"], Tokenizer(backend))
    assert ids(chunks) == [0, 1, 2, 2, 1, 2]
