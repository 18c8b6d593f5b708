"""Training of each tokenizer type, compared with the library alone and with naive counts."""

import logging
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import tokenizers
from helpers.texts import DOCUMENTS

from lit_lm.data.stories import stories
from lit_lm.tokenizer.tokenizer import Tokenizer
from lit_lm.tokenizer.train import END_OF_TEXT, LONG_WORD_PART, MAX_WORD, MIN_VOCAB_SIZE, TokenizerType


def tokens(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.decode([token]) for token in tokenizer.encode(text)]


@pytest.mark.parametrize("tokenizer_type", get_args(TokenizerType))
def test_documents_are_read_once_as_an_iterator(tokenizer_type: TokenizerType) -> None:
    def documents() -> Iterator[str]:
        yield from DOCUMENTS

    assert (
        Tokenizer.train(documents(), 350, tokenizer_type).to_json()
        == Tokenizer.train(DOCUMENTS, 350, tokenizer_type).to_json()
    )


@pytest.mark.parametrize("tokenizer_type", get_args(TokenizerType))
def test_another_process_trains_the_same_tokenizer(tokenizer_type: TokenizerType) -> None:
    """The order of the library's hash tables differs between processes."""
    program = "from lit_lm.tokenizer.tokenizer import Tokenizer; from helpers.texts import DOCUMENTS; "
    program += f"print(Tokenizer.train(DOCUMENTS, 350, {tokenizer_type!r}).fingerprint)"
    here = str(Path(__file__).parents[1])
    run = [sys.executable, "-c", f"import sys; sys.path.insert(0, {here!r}); {program}"]
    other = subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    assert other == Tokenizer.train(DOCUMENTS, 350, tokenizer_type).fingerprint


@pytest.mark.parametrize("tokenizer_type", ["bpe", "unigram"])
def test_a_tokenizer_has_vocab_size_tokens(tokenizer_type: TokenizerType) -> None:
    documents = list(stories("train", 50_000))
    sizes = [MIN_VOCAB_SIZE[tokenizer_type], 350, 800]
    assert [Tokenizer.train(documents, size, tokenizer_type).vocab_size for size in sizes] == sizes


def test_char_has_a_token_for_each_character_of_the_text_and_each_byte() -> None:
    characters = set("".join(DOCUMENTS))
    tokenizer = Tokenizer.train(DOCUMENTS, 1000, "char")
    assert tokenizer.vocab_size == 257 + len(characters)
    assert tokens(tokenizer, DOCUMENTS[3]) == list(DOCUMENTS[3])
    assert len(tokenizer.encode("é🦊")) == 6


def test_char_keeps_the_most_frequent_characters_if_vocab_size_is_too_small(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = Tokenizer.train(["aaabbbccd", "ca"], 259, "char")
    assert [len(tokenizer.encode(character)) for character in "abcd"] == [1, 1, 1, 1]
    assert {tokenizer.token(token) for token in (256, 257)} == {"a", "b"}
    assert tokenizer.decode(tokenizer.encode("dcba")) == "dcba"
    assert "room for the 2 most frequent of the text's 4 characters" in caplog.text


@pytest.mark.parametrize("tokenizer_type", get_args(TokenizerType))
@pytest.mark.parametrize("documents", [[], [""], ["a"], ["a b"], ["\0"], ["<0x41> <0x42>" * 9]])
def test_a_text_that_is_too_short_gives_fewer_tokens_and_a_warning(
    tokenizer_type: TokenizerType, documents: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = Tokenizer.train(documents, 1000, tokenizer_type)
    assert tokenizer.vocab_size < 1000
    assert "tokens, not 1000: the text yields no more" in caplog.text
    assert tokenizer.decode(tokenizer.encode("Grüße 🦊 <0x41>")) == "Grüße 🦊 <0x41>"


@pytest.mark.parametrize("tokenizer_type", get_args(TokenizerType))
def test_a_vocab_size_below_the_minimum_is_refused(tokenizer_type: TokenizerType) -> None:
    least = MIN_VOCAB_SIZE[tokenizer_type]
    for size in (least - 1, 0, -5):
        with pytest.raises(
            ValueError, match=rf"^vocab_size is {size}; a {tokenizer_type} tokenizer needs at least {least}: "
        ):
            Tokenizer.train(DOCUMENTS, size, tokenizer_type)


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ValueError, match="tokenizer_type is 'wordpiece'; it can be bpe, unigram, char"):
        Tokenizer.train(DOCUMENTS, 400, "wordpiece")  # type: ignore[arg-type]


@pytest.mark.parametrize("tokenizer_type", ["bpe", "unigram"])
def test_frequent_words_become_single_tokens(tokenizer_type: TokenizerType) -> None:
    tokenizer = Tokenizer.train(stories("train", 50_000), 1000, tokenizer_type)
    assert {" the", " was"} <= set(tokens(tokenizer, "Rain was the rain"))


def test_unigram_normalizes_text_to_nfkc() -> None:
    tokenizer = Tokenizer.train(DOCUMENTS[:3], 330, "unigram")
    for text in ("ﬁne Ⅷ ½ e\u0301 ｆｕｌｌ：width", "x²　y"):
        assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFKC", text)


def test_unigram_keeps_chinese_punctuation() -> None:
    tokenizer = Tokenizer.train(DOCUMENTS, 350, "unigram")
    for text in (DOCUMENTS[3], "（一）　二；ﬁ"):
        assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text) == text


def test_unigram_encodes_characters_without_a_token_as_bytes(caplog: pytest.LogCaptureFixture) -> None:
    text = "".join(chr(0x4E00 + i) * (1 + i % 7) for i in range(500))
    tokenizer = Tokenizer.train([text], 500, "unigram")
    assert tokenizer.vocab_size == 500
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert "most frequent of the text's 500 characters; the others are encoded as bytes" in caplog.text


def test_bpe_equals_that_of_the_library() -> None:
    theirs = tokenizers.ByteLevelBPETokenizer()
    theirs.train_from_iterator(DOCUMENTS[:3], 350, min_frequency=0, show_progress=False, special_tokens=[END_OF_TEXT])
    ours, loaded = Tokenizer.train(DOCUMENTS[:3], 350), Tokenizer.from_json(theirs.to_str())
    assert loaded.encode_batch(DOCUMENTS) == ours.encode_batch(DOCUMENTS)


def test_training_without_problems_logs_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Tokenizer.train(DOCUMENTS, 300)
    assert not caplog.records


@pytest.mark.parametrize(("tokenizer_type", "longest"), [("bpe", MAX_WORD), ("unigram", LONG_WORD_PART)])
@pytest.mark.parametrize("character", ["a", " ", "\n", "1", "!", "กำ", "е"])
def test_training_cuts_long_words(tokenizer_type: TokenizerType, longest: int, character: str) -> None:
    text = (character * 5000)[: 5000 - 5000 % MAX_WORD]
    tokenizer = Tokenizer.train([text, DOCUMENTS[0]], 400, tokenizer_type)
    learned = {tokenizer.decode([token]).encode() for token in tokenizer.encode(text)}
    assert max(map(len, learned)) <= longest * len("ก".encode())
    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize(
        "NFKC" if tokenizer_type == "unigram" else "NFC", text
    )


@pytest.mark.parametrize("tokenizer_type", ["bpe", "unigram"])
def test_other_words_are_not_cut_in_training(tokenizer_type: TokenizerType, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [*stories("train", 20_000), "x" * 100 + " " * 100, "从前有一只小狗，小狗喜欢小猫。" * 50]
    ours = Tokenizer.train(documents, 600, tokenizer_type)
    monkeypatch.setattr("lit_lm.tokenizer.train.MAX_WORD", 10_000)
    assert Tokenizer.train(documents, 600, tokenizer_type).to_json() == ours.to_json()
