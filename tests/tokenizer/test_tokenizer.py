"""Round trips of any text, special tokens, incremental decoding, and the same ids as the libraries."""

import json
from pathlib import Path
from typing import get_args

import pytest
import tokenizers
from helpers.texts import NASTY
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from lit_lm.tokenizer.detokenizer import Detokenizer
from lit_lm.tokenizer.tokenizer import Tokenizer
from lit_lm.tokenizer.train import END_OF_TEXT, TokenizerType

DOCUMENTS = [
    "Once upon a time there was a little dog. The dog liked the little cat.",
    "The cat liked the dog, and they played all day in the sun. What a day!",
    "The end is written <|endoftext|>, said the cat. <|endoftext|><|endoftext|>",
    "从前有一只小狗。小狗喜欢小猫。",
] * 5


@pytest.fixture(scope="module", params=get_args(TokenizerType))
def any_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.train(DOCUMENTS, 350, request.param)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(DOCUMENTS, 350)


def normalized(tokenizer: Tokenizer, text: str) -> str:
    return tokenizer.backend.normalizer.normalize_str(text) if tokenizer.backend.normalizer else text


@given(st.text())
def test_any_text_survives_a_round_trip_and_never_contains_the_end_token(any_tokenizer: Tokenizer, text: str) -> None:
    ids = any_tokenizer.encode(text)
    assert any_tokenizer.decode(ids) == normalized(any_tokenizer, text)
    assert any_tokenizer.end_id not in ids
    assert all(0 <= token < any_tokenizer.vocab_size for token in ids)


@pytest.mark.parametrize("text", NASTY, ids=ascii)
def test_difficult_text_survives_a_round_trip_and_never_contains_the_end_token(
    any_tokenizer: Tokenizer, text: str
) -> None:
    for same in (any_tokenizer, Tokenizer.from_json(any_tokenizer.to_json())):
        ids = same.encode(text)
        assert same.decode(ids) == normalized(any_tokenizer, text)
        assert same.end_id not in ids


def test_batches_give_the_same_ids_as_single_texts(tokenizer: Tokenizer) -> None:
    batch = tokenizer.encode_batch(NASTY)
    assert batch == [tokenizer.encode(text) for text in NASTY]
    assert tokenizer.decode_batch(batch) == NASTY


def test_the_end_token_is_decoded_to_its_name(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("a"), tokenizer.end_id, *tokenizer.encode("b")]
    assert tokenizer.decode(ids) == f"a{END_OF_TEXT}b"


def test_incomplete_characters_are_decoded_to_the_replacement_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🦊")
    assert len(ids) > 1
    assert set(tokenizer.decode(ids[:1])) == {"\ufffd"}


def streamed(tokenizer: Tokenizer, ids: list[int], after: list[int]) -> list[str]:
    decoder = Detokenizer(tokenizer, after)
    return [*(decoder.feed(token) for token in ids), decoder.finish()]


@given(st.text(), st.text())
@example("", "从前👩‍👩‍👧‍👦e\u0301\ufffd\ufffd")
def test_a_detokenizer_returns_whole_characters_and_the_whole_text(
    any_tokenizer: Tokenizer, before: str, text: str
) -> None:
    pieces = streamed(any_tokenizer, any_tokenizer.encode(text), any_tokenizer.encode(before))
    assert "".join(pieces) == any_tokenizer.decode(any_tokenizer.encode(text))
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@given(st.text(min_size=1), st.data())
@example("从前👩‍👩‍👧‍👦e\u0301\ufffd\ufffd.", None)
def test_a_detokenizer_returns_a_character_that_begins_in_the_prompt(
    any_tokenizer: Tokenizer, text: str, data: st.DataObject | None
) -> None:
    ids = any_tokenizer.encode(text)
    whole = any_tokenizer.decode(ids)
    for end in range(len(ids)) if data is None else [data.draw(st.integers(0, len(ids)))]:
        rest, before = "".join(streamed(any_tokenizer, ids[end:], ids[:end])), any_tokenizer.decode(ids[:end])
        assert whole in (before + rest, before.rstrip("\ufffd") + rest)


@given(st.data())
def test_a_detokenizer_returns_the_same_text_as_decode_for_any_ids(
    any_tokenizer: Tokenizer, data: st.DataObject
) -> None:
    # a model may have more ids than its tokenizer
    ids = data.draw(st.lists(st.integers(0, any_tokenizer.vocab_size + 5)))
    assert "".join(streamed(any_tokenizer, ids, [])) == any_tokenizer.decode(ids)


def test_a_detokenizer_returns_a_character_with_its_last_token(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🦊 the")
    pieces = streamed(tokenizer, ids, [])
    assert pieces[:4] == ["", "", "", "🦊"]
    assert "".join(pieces[:-1]) == "🦊 the"


def test_a_tokenizer_is_the_same_after_saving_and_loading(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_json(), encoding="utf-8")
    loaded = Tokenizer.load(path)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert (loaded.vocab_size, loaded.end_id) == (tokenizer.vocab_size, tokenizer.end_id)
    assert loaded.encode_batch(DOCUMENTS) == tokenizer.encode_batch(DOCUMENTS)


def test_fingerprints_differ_when_the_vocabulary_does(tokenizer: Tokenizer) -> None:
    other_size = Tokenizer.train(DOCUMENTS, 349)
    other_text = Tokenizer.train(["quite another text, another text, another text"], 300)
    assert len({tokenizer.fingerprint, other_size.fingerprint, other_text.fingerprint}) == 3


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no tokenizer at .*missing.json; pass the path of a"):
        Tokenizer.load(tmp_path / "missing.json")
    with pytest.raises(FileNotFoundError, match="there is no tokenizer at"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"junk", b"[1, 2]", b"{}", b"\xff\xfe\x00"])
def test_a_file_that_is_not_a_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer.json cannot be used as a tokenizer: "):
        Tokenizer.load(path)


@pytest.mark.parametrize("name", ["</s>", "<|end_of_text|>", "<eos>"])
def test_the_end_token_may_have_another_name(name: str) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, name: 1, "b": 2}, []))
    tokenizer = Tokenizer(backend)
    assert (tokenizer.end_token, tokenizer.end_id, tokenizer.vocab_size) == (name, 1, 3)
    again = Tokenizer.from_json(tokenizer.to_json())
    assert (again.end_token, again.end_id, again.special_tokens) == (name, 1, {name: 1})


def test_a_tokenizer_without_an_end_token_gets_one() -> None:
    tokenizer = Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, [])))
    assert (tokenizer.end_token, tokenizer.end_id, tokenizer.vocab_size) == (END_OF_TEXT, 2, 3)


def test_a_unigram_tokenizer_with_an_end_piece_does_not_find_it_in_text() -> None:
    pieces = [("</s>", 0.0), *((letter, -2.0) for letter in "</s> a")]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0))
    backend.add_special_tokens(["</s>"])
    tokenizer = Tokenizer.from_json(backend.to_str())
    assert tokenizer.end_id == 0
    assert tokenizer.encode("a</s>a") == [6, 1, 2, 3, 4, 6]


def test_a_tokenizer_without_tokens_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(path))
    with pytest.raises(ValueError, match=r"tokenizer.json cannot be used .*: it has no tokens"):
        Tokenizer.load(path)


@pytest.mark.parametrize("text", [text for text in NASTY if END_OF_TEXT not in text] + DOCUMENTS[:2], ids=ascii)
def test_ids_equal_those_of_transformers(tokenizer: Tokenizer, text: str) -> None:
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer.from_str(tokenizer.to_json()))
    assert tokenizer.encode(text) == theirs(text)["input_ids"]
    assert theirs.convert_tokens_to_ids(END_OF_TEXT) == tokenizer.end_id


@given(st.text(alphabet="The litdogcan.,", max_size=40))
@example("The little dog liked the cat and they played.")
def test_ids_equal_those_from_applying_the_merges_one_by_one(tokenizer: Tokenizer, text: str) -> None:
    model = json.loads(tokenizer.to_json())["model"]
    expected = []
    for word, _ in tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text):
        pieces = list(word)
        for left, right in model["merges"]:
            i = 0
            while i < len(pieces) - 1:
                if pieces[i : i + 2] == [left, right]:
                    pieces[i : i + 2] = [left + right]
                i += 1
        expected += [model["vocab"][piece] for piece in pieces]
    assert tokenizer.encode(text) == expected
