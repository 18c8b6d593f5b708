"""The user's special tokens: one id each wherever they occur, and no part of any other token."""

import json
from typing import get_args

import pytest
import tiktoken
from helpers.texts import DOCUMENTS, NASTY
from hypothesis import given
from hypothesis import strategies as st

from lit_lm.data.fast_bpe import GPT2_PATTERN, ByteLevelBPE
from lit_lm.data.stories import stories
from lit_lm.tokenizer.detokenizer import Detokenizer
from lit_lm.tokenizer.formats import byte_letters
from lit_lm.tokenizer.tokenizer import Tokenizer
from lit_lm.tokenizer.train import END_OF_TEXT, MIN_VOCAB_SIZE, TokenizerType

NAMES = ["<|user|>", "<|用户|>", "[INST]", "<s>"]
TEXTS = [
    *NASTY,
    "<|user|>Hi<|user|><|user|> [INST]a[INST]",
    " <|user|> <|USER|> <|user |> user|>",
    "x<s>y<|用户|>。</s>",
]
CHAT = [f"<|user|>{text}<|用户|> {text}" for text in DOCUMENTS]
KINDS: tuple[TokenizerType, ...] = get_args(TokenizerType)


@pytest.fixture(scope="module")
def trained() -> dict[TokenizerType, Tokenizer]:
    return {kind: Tokenizer.train(CHAT, 320, kind, NAMES) for kind in KINDS}


def theirs(tokenizer: Tokenizer) -> tiktoken.Encoding:
    """The same byte-level BPE in tiktoken, which knows special tokens by their names."""
    spec = json.loads(tokenizer.to_json())["model"]
    byte = {letter: number for number, letter in byte_letters().items()}
    ranks = {bytes(byte[c] for c in token): rank for token, rank in spec["vocab"].items() if token != END_OF_TEXT}
    return tiktoken.Encoding(
        "chat",
        pat_str=GPT2_PATTERN,
        mergeable_ranks=ranks,
        special_tokens={n: tokenizer.special_tokens[n] for n in NAMES},
    )


@given(st.lists(st.sampled_from([*TEXTS, *NAMES, "a", " ", "<", "|>"]) | st.text(max_size=5)).map("".join))
def test_ids_equal_those_of_tiktoken_with_special_tokens(trained: dict[TokenizerType, Tokenizer], text: str) -> None:
    ids = trained["bpe"].encode(text)
    assert ids == theirs(trained["bpe"]).encode(text, allowed_special="all", disallowed_special=())
    assert trained["bpe"].end_id not in ids


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_special_token_is_one_id_anywhere(
    trained: dict[TokenizerType, Tokenizer], kind: TokenizerType, name: str
) -> None:
    tokenizer = trained[kind]
    number = tokenizer.special_tokens[name]
    for text in TEXTS:
        assert tokenizer.encode(f"{text}{name}{text}") == [*tokenizer.encode(text), number, *tokenizer.encode(text)]
    ids = tokenizer.encode(f"a{name} b")
    decoder = Detokenizer(tokenizer)
    assert "".join([*map(decoder.feed, ids), decoder.finish()]) == tokenizer.decode(ids) == f"a{name} b"


@pytest.mark.parametrize("kind", KINDS)
def test_they_have_the_last_ids_and_count_in_the_vocabulary(
    trained: dict[TokenizerType, Tokenizer], kind: TokenizerType
) -> None:
    tokenizer = trained[kind]
    assert [tokenizer.special_tokens[name] for name in NAMES] == [
        *range(tokenizer.vocab_size - 4, tokenizer.vocab_size)
    ]
    assert tokenizer.vocab_size == 320 or kind != "bpe"
    again = Tokenizer.from_json(tokenizer.to_json())
    assert again.special_tokens == tokenizer.special_tokens
    assert again.encode("".join(TEXTS)) == tokenizer.encode("".join(TEXTS))


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_no_other_token_has_a_part_of_them(trained: dict[TokenizerType, Tokenizer], kind: TokenizerType) -> None:
    tokens = [trained[kind].decode([i]) for i in range(trained[kind].vocab_size - len(NAMES))]
    assert not [token for token in tokens if "ser|" in token or "|us" in token or "户|" in token]
    assert [token for token in Tokenizer.train(CHAT, 400, kind).backend.get_vocab() if "user" in token]


def test_without_them_a_tokenizer_is_what_it_was() -> None:
    assert Tokenizer.train(CHAT, 400, "bpe", []).to_json() == Tokenizer.train(CHAT, 400).to_json()


def test_the_fast_encoder_leaves_such_a_tokenizer_to_the_library(trained: dict[TokenizerType, Tokenizer]) -> None:
    assert ByteLevelBPE.of(trained["bpe"]) is None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["user"], "'user'; a special token must look like <|user|>"),
        (["<a b>"], "without spaces"),
        (["<a\x07>"], "must look like"),
        ([""], "must look like"),
        ([END_OF_TEXT], "which has a meaning already"),
        (["<0x41>"], "which has a meaning already"),
        (["<a>", "<a>"], "the same token twice"),
        (["<é>"], "which cannot be decoded; use only ASCII characters"),
    ],
)
def test_a_bad_name_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match="special_tokens has") as error:
        Tokenizer.train(DOCUMENTS, 400, "bpe", names)
    assert message in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_they_need_room_in_the_vocabulary(kind: TokenizerType) -> None:
    least = MIN_VOCAB_SIZE[kind] + 1
    with pytest.raises(ValueError, match=f"needs at least {least}: .*<a>"):
        Tokenizer.train(DOCUMENTS, least - 1, kind, ["<a>"])
    documents = list(stories("train", 50_000))
    assert Tokenizer.train(documents, least, kind, ["<a>"]).vocab_size == least
