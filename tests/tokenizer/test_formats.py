"""Tokenizers in other formats give the same ids as their own libraries."""

import base64
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiktoken
import tokenizers
from helpers.texts import NASTY
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from lit_lm.data.stories import stories
from lit_lm.tokenizer import formats
from lit_lm.tokenizer.detokenizer import Detokenizer
from lit_lm.tokenizer.formats import O200K, byte_letters
from lit_lm.tokenizer.tokenizer import Tokenizer
from lit_lm.tokenizer.train import END_OF_TEXT

# patterns of tiktoken's encodings gpt2, cl100k_base and o200k_base
THEIR_PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "cl100k_base": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    "o200k_base": O200K,
}
TEXTS = [
    *NASTY,
    "I'm you're we've she'll he'd it's don't I'M YOU'RE 'S 'll' ''s",
    "1 12 123 1234 12345 x1y22z ½ ٣٤ Ⅷ 3.14 -1",
    "a\n\nb\n \n  c  \n",
    "end\n",
    "end\n\n",
    "end   ",
    "   start",
    "\n  ",
    "a \t b\u00a0\u3000c\u2003d\u0085e",
    "def f(x):\n    return x  # no\n\n\n",
    "    ",
    "HTTPServer iPhone McDonald ǅ ÀÉ",
]
CODE = "def f(x):\n    return x + 1\n\n\nprint(f(12))  # 1234567\n\n" * 3
LEARNED_FROM = [*stories("train", 20_000), CODE, "I'm sure you're right, we've seen it's done; don't!", *TEXTS]
wild = st.text() | st.text(alphabet="ab 1'st\n\r\t.,!中 é<|>endoftx/", max_size=60)


@pytest.fixture(scope="module")
def learned() -> Any:
    """Vocabulary and merges of a byte-level BPE, in the format of the library."""
    return json.loads(Tokenizer.train(LEARNED_FROM, 700).to_json())["model"]


@pytest.fixture(scope="module")
def ranks(learned: Any) -> dict[bytes, int]:
    """tiktoken's ranks: the bytes, then the merges in order."""
    byte = {letter: number for number, letter in byte_letters().items()}
    names = [*sorted(byte, key=byte.__getitem__), *(left + right for left, right in learned["merges"])]
    return {bytes(byte[letter] for letter in name): rank for rank, name in enumerate(names)}


@pytest.fixture(scope="module", params=THEIR_PATTERNS)
def tiktoken_pair(
    request: pytest.FixtureRequest, ranks: dict[bytes, int], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, tiktoken.Encoding]:
    path = tmp_path_factory.mktemp("tiktoken") / f"{request.param}.tiktoken"
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    tokenizer = Tokenizer.load(path)
    theirs = tiktoken.Encoding(
        request.param,
        pat_str=THEIR_PATTERNS[request.param],
        mergeable_ranks=ranks,
        special_tokens={END_OF_TEXT: tokenizer.end_id},
    )
    return tokenizer, theirs


def agree(tokenizer: Tokenizer, theirs: tiktoken.Encoding, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids == theirs.encode(text, disallowed_special=())
    assert tokenizer.decode(ids) == text
    assert tokenizer.end_id not in ids
    decoder = Detokenizer(tokenizer)
    assert "".join([*(decoder.feed(token) for token in ids), decoder.finish()]) == text


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_ids_equal_those_of_tiktoken(tiktoken_pair: tuple[Tokenizer, tiktoken.Encoding], text: str) -> None:
    agree(*tiktoken_pair, text)


@given(wild)
def test_ids_of_any_text_equal_those_of_tiktoken(tiktoken_pair: tuple[Tokenizer, tiktoken.Encoding], text: str) -> None:
    agree(*tiktoken_pair, text)


def test_the_special_token_has_tiktokens_id(
    ranks: dict[bytes, int], tiktoken_pair: tuple[Tokenizer, tiktoken.Encoding]
) -> None:
    tokenizer, theirs = tiktoken_pair
    assert tokenizer.end_id == {"gpt2": len(ranks), "cl100k_base": 100257, "o200k_base": 199999}[theirs.name]
    assert tokenizer.vocab_size == tokenizer.end_id + 1
    assert tokenizer.decode([tokenizer.end_id]) == theirs.decode([tokenizer.end_id])


@pytest.fixture(scope="module")
def gpt2(learned: Any, ranks: dict[bytes, int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in GPT-2's format."""
    folder = tmp_path_factory.mktemp("gpt2")
    letters = byte_letters()
    vocab = {"".join(letters[byte] for byte in token): rank for token, rank in ranks.items()}
    vocab[END_OF_TEXT] = len(vocab)
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in learned["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    return folder


@given(text=wild)
@example("I'm  here\n\n \n<|endoftext|> 123   ")
def test_ids_of_gpt2s_format_equal_those_of_tiktoken(gpt2: Path, ranks: dict[bytes, int], text: str) -> None:
    theirs = tiktoken.Encoding(
        "small", pat_str=THEIR_PATTERNS["gpt2"], mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)}
    )
    for path in (gpt2, gpt2 / "vocab.json"):
        tokenizer = Tokenizer.load(path)
        assert tokenizer.vocab_size == theirs.n_vocab
        agree(tokenizer, theirs, text)


Model = Callable[..., Path]


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Train a SentencePiece model."""

    def trained(name: str, **options: Any) -> Path:
        path = tmp_path_factory.mktemp("spm") / f"{name}.model"
        if not path.exists():
            written = io.BytesIO()
            sentencepiece.SentencePieceTrainer.Train(
                sentence_iterator=iter([*stories("train", 20_000), "从前有一只小狗，小狗喜欢小猫。" * 3]),
                model_writer=written,
                minloglevel=2,
                vocab_size=600,
                **options,
            )
            path.write_bytes(written.getvalue())
        return path

    return trained


SPM_OPTIONS: list[dict[str, Any]] = [
    {"model_type": "unigram"},
    {"model_type": "unigram", "byte_fallback": True, "normalization_rule_name": "identity"},
    {"model_type": "unigram", "byte_fallback": True, "add_dummy_prefix": False, "remove_extra_whitespaces": False},
    {"model_type": "bpe"},
    {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"},
    {"model_type": "bpe", "byte_fallback": True, "remove_extra_whitespaces": False, "split_digits": True},
]


@pytest.fixture(scope="module", params=SPM_OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def spm_pair(request: pytest.FixtureRequest, spm: Model) -> tuple[Tokenizer, Any]:
    path = spm("model", **request.param)
    return Tokenizer.load(path), sentencepiece.SentencePieceProcessor(str(path))


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_ids_equal_those_of_sentencepiece(spm_pair: tuple[Tokenizer, Any], text: str) -> None:
    tokenizer, theirs = spm_pair
    assert tokenizer.encode(text) == theirs.encode(text)


@given(text=wild)
@example("</s><s><unk> <0x41>")
def test_ids_of_any_text_equal_those_of_sentencepiece(spm_pair: tuple[Tokenizer, Any], text: str) -> None:
    tokenizer, theirs = spm_pair
    ids = tokenizer.encode(text)
    assert ids == theirs.encode(text)
    assert tokenizer.end_id not in ids
    assert Tokenizer.from_json(tokenizer.to_json()).encode(text) == ids


def test_the_end_token_is_that_of_sentencepiece(spm_pair: tuple[Tokenizer, Any]) -> None:
    tokenizer, theirs = spm_pair
    assert (tokenizer.end_token, tokenizer.end_id) == ("</s>", theirs.eos_id())
    assert tokenizer.vocab_size == theirs.vocab_size()


def test_a_continuation_keeps_its_first_space(spm_pair: tuple[Tokenizer, Any]) -> None:
    tokenizer, _ = spm_pair
    before, after = tokenizer.encode("The rain"), tokenizer.encode("The rain was")
    assert after[: len(before)] == before
    decoder = Detokenizer(tokenizer, before)
    assert "".join([*(decoder.feed(token) for token in after[len(before) :]), decoder.finish()]) == " was"


def test_a_model_without_an_end_token_gets_one(spm: Model) -> None:
    tokenizer = Tokenizer.load(spm("endless", eos_id=-1))
    assert (tokenizer.end_token, tokenizer.end_id, tokenizer.vocab_size) == (END_OF_TEXT, 600, 601)
    ids = [*tokenizer.encode("The cat"), 600, *tokenizer.encode("The dog")]
    assert tokenizer.decode([*ids, 700]) == "The cat<|endoftext|>The dog"


def test_a_model_that_encodes_text_to_the_end_token_is_refused(spm: Model) -> None:
    with pytest.raises(ValueError, match=r"its piece <\|endoftext\|>, .* is not a control symbol"):
        Tokenizer.load(spm("user", eos_id=-1, user_defined_symbols=[END_OF_TEXT]))


def test_a_missing_package_is_named(spm: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    text = Tokenizer.load(spm("packed")).to_json()
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ValueError, match=r"needs the package: pip install 'lit-lm\[sentencepiece\]'"):
        Tokenizer.from_json(text)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.model", b"junk", "not a SentencePiece model"),
        ("a.model", b"", "a.model cannot be used"),
        ("a.tiktoken", b"IQ== 0\nno\n", "line 2 is not a token in base64 and its rank"),
        ("a.tiktoken", b"IQ== 0\nIg== 0\n", "ranks are not distinct"),
        ("a.tiktoken", b"IQ== 0\n", "it has no token for the byte 0"),
        ("a.tiktoken", b"IQ== 99999999999\n", "far beyond"),
        ("a.tiktoken", b"", "ranks are not distinct"),
        ("vocab.json", b"{}", "there is no merges.txt in its folder"),
    ],
)
def test_a_file_whose_content_does_not_match_its_name_is_refused(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} cannot be used as a tokenizer: ") as error:
        Tokenizer.load(tmp_path / name)
    assert message in str(error.value)


def test_a_folder_with_a_tokenizer_json_can_be_loaded(tmp_path: Path) -> None:
    tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, [])).save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).encode("aa") == [0, 0]


def words_of(text: str, **model: object) -> tokenizers.Tokenizer:
    """A byte-level BPE of the library, trained on a text."""
    backend = tokenizers.Tokenizer(models.BPE(**model))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, show_progress=False, initial_alphabet=alphabet)
    backend.train_from_iterator([text], trainer)
    return backend


def test_truncation_padding_and_dropout_saved_in_a_tokenizer_are_switched_off(tmp_path: Path) -> None:
    text = "the cat sat on the mat and the hat of the cat sat on the rat " * 8
    plain = words_of(text)
    expected = plain.encode(text).ids
    plain.model = models.BPE.from_file(*plain.model.save(str(tmp_path)), dropout=0.5)
    plain.enable_truncation(16)
    plain.enable_padding(length=400)
    plain.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
    assert tokenizer.encode(text) == tokenizer.encode(text) == expected
    assert tokenizer.encode_batch([text, "the"]) == [expected, tokenizer.encode("the")]
    assert Tokenizer.from_json(tokenizer.to_json()).fingerprint == tokenizer.fingerprint


def test_a_piece_of_the_vocabulary_that_text_is_encoded_to_is_not_the_end() -> None:
    words = tokenizers.Tokenizer(models.WordLevel({"a": 0, "</s>": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = Tokenizer(words)
    assert tokenizer.encode("a </s> a") == [0, 1, 0]
    assert tokenizer.end_token == "<|endoftext|>"
    assert tokenizer.end_id == 3
    words = tokenizers.Tokenizer(models.WordLevel({"a": 0, "<|endoftext|>": 1}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(ValueError, match=r"encodes text to <\|endoftext\|>"):
        Tokenizer(words)


def in_folder(folder: Path, vocab: dict[str, int], **files: object) -> Path:
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


BYTES = {letter: number for number, letter in enumerate(byte_letters().values())}


def test_a_folder_is_read_with_its_added_tokens_and_its_prefix_space(tmp_path: Path) -> None:
    plain = Tokenizer.load(in_folder(tmp_path / "plain", BYTES))
    files = {"added_tokens": {"<|endoftext|>": 257, "<pad>": 256}, "tokenizer_config": {"add_prefix_space": True}}
    tokenizer = Tokenizer.load(in_folder(tmp_path / "whole", BYTES, **files))
    assert tokenizer.end_id == 257
    assert tokenizer.vocab_size == 258
    assert tokenizer.encode("a") == plain.encode(" a") != plain.encode("a")


@pytest.mark.parametrize(
    ("vocab", "files", "message"),
    [
        (BYTES | {"a</w>": 256}, {}, "tokens end with </w>"),
        ({"a": 0, "b": 1}, {}, "there is no token for the byte"),
        (BYTES, {"added_tokens": {"<x>": 300}}, "token <x> has the id 300, which does not follow the vocabulary"),
        (BYTES, {"tokenizer_config": {"tokenizer_class": "Qwen2Tokenizer"}}, "its tokenizer_class is Qwen2Tokenizer"),
        (BYTES, {"tokenizer_config": {"added_tokens_decoder": {"256": "a"}}}, "added tokens are not in GPT-2's format"),
    ],
)
def test_a_folder_that_is_not_gpt2s_format_is_refused(
    tmp_path: Path, vocab: dict[str, int], files: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Tokenizer.load(in_folder(tmp_path / "other", vocab, **files))


def test_added_tokens_that_are_not_special_are_found_in_text(tmp_path: Path) -> None:
    decoder = {"257": {"content": "<s>", "special": True}, "258": {"content": "<b>", "special": False}}
    files = {"added_tokens": {"   ": 256}, "tokenizer_config": {"added_tokens_decoder": decoder}}
    tokenizer = Tokenizer.load(in_folder(tmp_path / "added", BYTES, **files))
    plain = Tokenizer.load(in_folder(tmp_path / "plain", BYTES))
    assert tokenizer.encode("a   <s><b>") == [*plain.encode("a"), 256, *plain.encode("<s>"), 258]


def test_an_empty_token_in_ranks_keeps_its_id(tmp_path: Path) -> None:
    """As in Whisper's multilingual.tiktoken."""
    lines = [base64.b64encode(bytes([byte])) + f" {byte}".encode() for byte in range(256)]
    (tmp_path / "multilingual.tiktoken").write_bytes(b"\n".join([*lines, b"= 256"]))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.end_id, tokenizer.vocab_size) == (257, 258)
    assert tokenizer.encode("unused") == list(b"unused")


def test_a_hole_in_the_ranks_of_p50k_is_its_end_token(tmp_path: Path) -> None:
    ranks = [bytes([byte]) for byte in range(256)] + [b"ab", None, b"abc"]
    lines = [base64.b64encode(token) + f" {rank}".encode() for rank, token in enumerate(ranks) if token is not None]
    path = tmp_path / "p50k_base.tiktoken"
    path.write_bytes(b"\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(formats.ENCODINGS, "p50k_base", formats.Encoding(end_id=257))
        tokenizer = Tokenizer.load(path)
    assert tokenizer.end_id == 257
    assert tokenizer.encode("abcab") == [258, 256]
