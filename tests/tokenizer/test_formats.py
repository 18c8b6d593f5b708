"""Others' tokenizers give the ids that their own libraries give."""

import base64
import io
import json
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

from lit_lm.data.stories import stories
from lit_lm.tokenizer.detokenizer import Detokenizer
from lit_lm.tokenizer.formats import PATTERNS, byte_letters
from lit_lm.tokenizer.tokenizer import Tokenizer
from lit_lm.tokenizer.train import END_OF_TEXT

# those of tiktoken's own encodings gpt2, cl100k_base and o200k_base
THEIR_PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "cl100k_base": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    "o200k_base": PATTERNS["o200k_base"],
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
    """Vocabulary and merges of a byte-level BPE, as the library saves them."""
    return json.loads(Tokenizer.train(LEARNED_FROM, 700).to_json())["model"]


@pytest.fixture(scope="module")
def ranks(learned: Any) -> dict[bytes, int]:
    """Bytes first and then the merges in order, as tiktoken numbers them."""
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
def test_ids_are_tiktokens(tiktoken_pair: tuple[Tokenizer, tiktoken.Encoding], text: str) -> None:
    agree(*tiktoken_pair, text)


@given(wild)
def test_ids_of_any_text_are_tiktokens(tiktoken_pair: tuple[Tokenizer, tiktoken.Encoding], text: str) -> None:
    agree(*tiktoken_pair, text)


def test_special_ids_are_tiktokens(ranks: dict[bytes, int], tiktoken_pair: tuple[Tokenizer, tiktoken.Encoding]) -> None:
    tokenizer, theirs = tiktoken_pair
    assert tokenizer.end_id == {"gpt2": len(ranks), "cl100k_base": 100257, "o200k_base": 199999}[theirs.name]
    assert tokenizer.vocab_size == tokenizer.end_id + 1
    assert tokenizer.decode([tokenizer.end_id]) == theirs.decode([tokenizer.end_id])


@pytest.fixture(scope="module")
def gpt2(learned: Any, ranks: dict[bytes, int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of GPT-2's form."""
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
def test_gpt2s_form_gives_tiktokens_ids(gpt2: Path, ranks: dict[bytes, int], text: str) -> None:
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
    """Trains a SentencePiece model."""

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
def test_ids_are_sentencepieces(spm_pair: tuple[Tokenizer, Any], text: str) -> None:
    tokenizer, theirs = spm_pair
    assert tokenizer.encode(text) == theirs.encode(text)


@given(text=wild)
@example("</s><s><unk> <0x41>")
def test_ids_of_any_text_are_sentencepieces(spm_pair: tuple[Tokenizer, Any], text: str) -> None:
    tokenizer, theirs = spm_pair
    ids = tokenizer.encode(text)
    assert ids == theirs.encode(text)
    assert tokenizer.end_id not in ids
    assert Tokenizer.from_json(tokenizer.to_json()).encode(text) == ids


def test_the_end_is_sentencepieces(spm_pair: tuple[Tokenizer, Any]) -> None:
    tokenizer, theirs = spm_pair
    assert (tokenizer.end_token, tokenizer.end_id) == ("</s>", theirs.eos_id())
    assert tokenizer.vocab_size == theirs.vocab_size()


def test_a_continuation_keeps_its_first_space(spm_pair: tuple[Tokenizer, Any]) -> None:
    tokenizer, _ = spm_pair
    before, after = tokenizer.encode("The rain"), tokenizer.encode("The rain was")
    assert after[: len(before)] == before
    decoder = Detokenizer(tokenizer, before)
    assert "".join([*(decoder.feed(token) for token in after[len(before) :]), decoder.finish()]) == " was"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"user_defined_symbols": ["<tag>"]}, "tokens of kind USER_DEFINED: ['<tag>']"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix"),
        ({"model_type": "char"}, "its method is CHAR; UNIGRAM and BPE can be read"),
    ],
)
def test_what_cannot_be_followed_exactly_is_refused_by_name(spm: Model, options: dict[str, Any], message: str) -> None:
    path = spm("refused", **options) if "model_type" not in options else spm("char", hard_vocab_limit=False, **options)
    with pytest.raises(ValueError, match="model cannot be used") as error:
        Tokenizer.load(path)
    assert message in str(error.value)


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
        ("vocab.json", b"{}", "there is no merges.txt beside it"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} cannot be used as a tokenizer: ") as error:
        Tokenizer.load(tmp_path / name)
    assert message in str(error.value)


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no tokenizer at"):
        Tokenizer.load(tmp_path)


def test_a_folder_with_a_tokenizer_json_is_enough(tmp_path: Path) -> None:
    tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, [])).save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).encode("aa") == [0, 0]
