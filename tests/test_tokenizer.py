"""Round trips of any text, a special token that text cannot forge, and the ids that the libraries give."""

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from lit_lm.text.tokenizer import END_OF_TEXT, MIN_VOCAB_SIZE, StreamDecoder, Tokenizer

DOCUMENTS = [
    "Once upon a time there was a little dog. The dog liked the little cat.",
    "The cat liked the dog, and they played all day in the sun. What a day!",
    "The end is written <|endoftext|>, said the cat. <|endoftext|><|endoftext|>",
    "从前有一只小狗。小狗喜欢小猫。",
] * 5
NASTY = [
    "",
    " ",
    "a  b   c    d     ",
    "\t\tindented\n\n\n  spaces\n",
    "line\r\nline\rline\n\r",
    "NUL \x00 and \x7f and \x1b[0m",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽",
    "e\u0301 is not \u00e9, \ufeff is a mark, \u200b has no width",
    "从前有一只小狗。小狗喜欢小猫。",
    "עברית العربية हिन्दी ไทย",
    "\U0010ffff \ufffd \ue000",
    "<|endoftext|>",
    "a<|endoftext|>b <|endoftext|> <|endoftext|><|endoftext|>\n",
    "<|endoftext<|endoftext|>|>",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(DOCUMENTS, 350)


@given(st.text())
def test_any_text_comes_back_and_never_holds_the_end(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.end_id not in ids
    assert all(0 <= token < tokenizer.vocab_size for token in ids)


@pytest.mark.parametrize("text", NASTY, ids=ascii)
def test_nasty_text_comes_back_and_never_holds_the_end(tokenizer: Tokenizer, text: str) -> None:
    for same in (tokenizer, Tokenizer.from_json(tokenizer.to_json())):
        ids = same.encode(text)
        assert same.decode(ids) == text
        assert same.end_id not in ids


def test_batches_give_what_single_texts_give(tokenizer: Tokenizer) -> None:
    batch = tokenizer.encode_batch(NASTY)
    assert batch == [tokenizer.encode(text) for text in NASTY]
    assert tokenizer.decode_batch(batch) == NASTY


def test_the_end_is_decoded_to_its_letters(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("a"), tokenizer.end_id, *tokenizer.encode("b")]
    assert tokenizer.decode(ids) == f"a{END_OF_TEXT}b"


def test_bytes_that_are_no_whole_character_are_decoded_to_the_replacement_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🦊")
    assert len(ids) > 1
    assert set(tokenizer.decode(ids[:1])) == {"\ufffd"}


def streamed(tokenizer: Tokenizer, ids: list[int], after: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer, after)
    return [*(decoder.feed(token) for token in ids), decoder.finish()]


@given(st.text(), st.text())
@example("", "从前👩‍👩‍👧‍👦e\u0301\ufffd\ufffd")
def test_a_stream_gives_whole_characters_and_in_all_the_text(tokenizer: Tokenizer, before: str, text: str) -> None:
    pieces = streamed(tokenizer, tokenizer.encode(text), tokenizer.encode(before))
    assert "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@given(st.data())
def test_a_stream_of_any_ids_gives_what_decode_gives(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 5)))  # a model may have more ids than its tokenizer
    assert "".join(streamed(tokenizer, ids, [])) == tokenizer.decode(ids)


def test_a_stream_does_not_wait_longer_than_a_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🦊 the")
    pieces = streamed(tokenizer, ids, [])
    assert pieces[:4] == ["", "", "", "🦊"]
    assert "".join(pieces[:-1]) == "🦊 the"


def test_frequent_words_become_single_tokens(tokenizer: Tokenizer) -> None:
    assert [tokenizer.decode([token]) for token in tokenizer.encode("The little dog")] == ["The", " little", " dog"]


def test_training_is_deterministic() -> None:
    first, second = (Tokenizer.train(iter(DOCUMENTS), 400) for _ in range(2))
    assert first.to_json() == second.to_json()


def test_vocab_size_is_reached_but_not_exceeded() -> None:
    sizes = [Tokenizer.train(DOCUMENTS, size).vocab_size for size in (MIN_VOCAB_SIZE, 300, 350)]
    assert sizes == [MIN_VOCAB_SIZE, 300, 350]


@pytest.mark.parametrize(("documents", "merges"), [([], 0), ([""], 0), (["a"], 0), (["a b"], 1), (["abc b"], 3)])
def test_vocabulary_is_smaller_when_there_is_nothing_left_to_merge(documents: list[str], merges: int) -> None:
    tokenizer = Tokenizer.train(documents, 1000)
    assert tokenizer.vocab_size == MIN_VOCAB_SIZE + merges
    assert tokenizer.decode(tokenizer.encode("Grüße 🦊")) == "Grüße 🦊"


@pytest.mark.parametrize("size", [MIN_VOCAB_SIZE - 1, 0, -5])
def test_a_vocabulary_without_room_for_all_bytes_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=rf"^vocab_size is {size}; a byte-level tokenizer needs at least 257: "):
        Tokenizer.train(DOCUMENTS, size)


def test_save_and_load_give_the_same_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
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


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no tokenizer at .*missing.json; give the path of a"):
        Tokenizer.load(tmp_path / "missing.json")
    with pytest.raises(FileNotFoundError, match="there is no tokenizer at"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"junk", b"[1, 2]", b"{}", b"\xff\xfe\x00"])
def test_a_file_that_is_no_tokenizer_is_refused_and_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer.json cannot be used as a tokenizer: "):
        Tokenizer.load(path)


def test_a_tokenizer_without_the_end_is_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(path))
    with pytest.raises(ValueError, match=r"tokenizer.json cannot be used .*: the tokenizer has no token <\|endoftext"):
        Tokenizer.load(path)


@pytest.mark.parametrize("text", [text for text in NASTY if END_OF_TEXT not in text] + DOCUMENTS[:2], ids=ascii)
def test_ids_are_those_that_transformers_gives(tokenizer: Tokenizer, text: str) -> None:
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer.from_str(tokenizer.to_json()))
    assert tokenizer.encode(text) == theirs(text)["input_ids"]
    assert theirs.convert_tokens_to_ids(END_OF_TEXT) == tokenizer.end_id


@given(st.text(alphabet="The litdogcan.,", max_size=40))
@example("The little dog liked the cat and they played.")
def test_ids_follow_from_the_merges_one_by_one(tokenizer: Tokenizer, text: str) -> None:
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


def test_training_is_that_of_the_library(tmp_path: Path) -> None:
    theirs = tokenizers.ByteLevelBPETokenizer()
    theirs.train_from_iterator(DOCUMENTS, 350, min_frequency=0, show_progress=False, special_tokens=[END_OF_TEXT])
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours, loaded = Tokenizer.train(DOCUMENTS, 350), Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.encode_batch(DOCUMENTS) == ours.encode_batch(DOCUMENTS)
