"""Every form of tokenizer gives the ids of its own library for difficult texts, or refuses them in words."""

import base64
import io
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiktoken
import tokenizers
from helpers.texts import NASTY
from tokenizers import models, normalizers, pre_tokenizers, trainers

from lit_lm.data.stories import stories
from lit_lm.tokenizer.formats import byte_letters
from lit_lm.tokenizer.tokenizer import Tokenizer

SCRIPTS = [
    "Tiếng Việt rất đẹp, Nguyễn ậ Ặ",
    "한국어 텍스트 각힣",
    "Ελληνικά ΐ ᾧ ά",
    "が ば ﾊﾞ カﾞ 日本語",
    "Русский йё",
    "हिन्दी क़ ज़",
    "العربية آ ؤ ئ ﷺ",
    "ไทย น้ำ กำ",
    "é ﬁ ½ Å ㎏ İ ß ẞ ǆ Ⅷ １２ ſ",
]
WHITE_SPACE = (
    "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u200b\u2028\u2029\u202f\u205f\u2060\u3000\ufeff"
)
TEXTS = [
    *NASTY,
    *(unicodedata.normalize(form, text) for text in SCRIPTS for form in ("NFC", "NFD")),
    *("".join(f"a{space * n}b" for n in range(1, 71)) for space in WHITE_SPACE),
    *(space * n + "b" + space * n for space in WHITE_SPACE for n in (1, 2, 16, 17, 70)),
    "👩‍👩‍👧‍👦🏳️‍🌈👍🏽🇫🇷🇩🇪 \u2764\ufe0f",
    "1 12 123 1234 12345 1234567890 ٣٤",
    "if (x == 1) {\n\treturn x;\n}\r\n\r\n//----====____....\n    def f(x):\n        return x\n\n\n",
    "".join(map(chr, range(160))),
    "a\u202eb\u200fc\u2067d\u2069 \u200e",
    "\ufeffa\ufeff\ufffe",
    "hahahahaha aaaaaaaaaaaaaaa ababababababab abcabcabcabc",
    "I'M don't WE'LL ''s 'ſ",
    "\u0323\u0302 a\u0302\u0323 e\u0301\u0316\u0301",
    "</s><s><unk><pad>[EOS] <|end_of_text|> a</s>b",
]
NAME = "<|endoftext|>"
LEARNED_FROM = [*stories("train", 15_000), *(text.replace(NAME, "") for text in TEXTS if len(text) < 200)]
SURROGATES = ["a\ud800b", "\udcff"]


def check(tokenizer: Tokenizer, theirs: Callable[[str], list[int]]) -> None:
    """Compare all ids; also those of a tokenizer that was saved and loaded, as in a checkpoint."""
    expected = [theirs(text) for text in TEXTS]
    for same in (tokenizer, Tokenizer.from_json(tokenizer.to_json())):
        for text, ours, right in zip(TEXTS, same.encode_batch(TEXTS), expected, strict=True):
            assert ours == right, text
            assert same.end_id not in ours
        assert [same.encode(text) for text in TEXTS[:30]] == expected[:30]
    for text in SURROGATES:
        with pytest.raises(ValueError, match=r"lone surrogate U\+D[8C]"):
            tokenizer.encode_batch(["a", text])


@pytest.mark.parametrize("rule", ["nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf", "identity"])
@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "unigram"},
        {"model_type": "bpe", "byte_fallback": True},
        {"model_type": "bpe", "remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True},
        {"model_type": "unigram", "user_defined_symbols": ["<tag>", "    "], "add_dummy_prefix": False},
        {"model_type": "char", "treat_whitespace_as_suffix": True},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_ids_equal_those_of_sentencepiece(options: dict[str, Any], rule: str, tmp_path: Path) -> None:
    written = io.BytesIO()
    learned = [line for text in LEARNED_FROM for line in text.replace("\0", "").splitlines() if line]
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter([*learned, *(" " * n + "x" for n in range(2, 40))]),
        model_writer=written,
        minloglevel=2,
        vocab_size=900,
        hard_vocab_limit=False,
        num_threads=1,
        normalization_rule_name=rule,
        **options,
    )
    (tmp_path / "a.model").write_bytes(written.getvalue())
    theirs = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    tokenizer = Tokenizer.load(tmp_path / "a.model")
    check(tokenizer, theirs.encode)
    assert (tokenizer.end_token, tokenizer.end_id) == ("</s>", theirs.eos_id())


CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
QWEN = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
# name of the file, pattern and normalization of its own library, and name and id of the end token after 700 ranks
RANKS: list[tuple[str, str, Callable[[str], str], str, int]] = [
    ("r50k_base.tiktoken", GPT2, str, "<|endoftext|>", 700),
    ("mine.tiktoken", GPT2, str, "<|endoftext|>", 700),
    ("p50k_base.tiktoken", GPT2, str, "<|endoftext|>", 50256),
    ("qwen.tiktoken", QWEN, lambda text: unicodedata.normalize("NFC", text), "<|endoftext|>", 151643),
    ("tokenizer.model", QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|"), str, "<|end_of_text|>", 701),
]


def learned_ranks(pattern: str | None) -> dict[bytes, int]:
    """700 ranks of a byte-level BPE; pattern None: GPT-2's."""
    backend = tokenizers.Tokenizer(models.BPE())
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    words = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")] if pattern else []
    backend.pre_tokenizer = pre_tokenizers.Sequence([*words, letters])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(LEARNED_FROM, trainer)
    byte = {letter: number for number, letter in byte_letters().items()}
    vocab = sorted(backend.get_vocab().items(), key=lambda item: (len(item[0]) > 1, item[1]))
    return {bytes(byte[letter] for letter in name): rank for rank, (name, _) in enumerate(vocab)}


def write_ranks(path: Path, ranks: dict[bytes, int]) -> Path:
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    return path


@pytest.mark.parametrize(("name", "pattern", "normalize", "end", "end_id"), RANKS, ids=lambda case: str(case)[:20])
def test_ids_equal_those_of_tiktoken(
    name: str, pattern: str, normalize: Callable[[str], str], end: str, end_id: int, tmp_path: Path
) -> None:
    ranks = learned_ranks(None if pattern == GPT2 else pattern)
    theirs = tiktoken.Encoding("a", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    tokenizer = Tokenizer.load(write_ranks(tmp_path / name, ranks))
    assert (tokenizer.end_token, tokenizer.end_id, tokenizer.vocab_size) == (end, end_id, end_id + 1)
    check(tokenizer, lambda text: theirs.encode_ordinary(normalize(text)))


def test_ranks_for_an_unknown_pattern_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"its token .* is not a word of GPT-2's pattern.* r50k_base"):
        Tokenizer.load(write_ranks(tmp_path / "mine.tiktoken", learned_ranks(QWEN)))


END = "<eos>"  # not in TEXTS: where a text has the name of a special piece, lit-lm differs from Unigram
JSON_MODELS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "word level": lambda: tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]")),
    "wordpiece": lambda: tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]")),
    "bpe with suffix": lambda: tokenizers.Tokenizer(models.BPE(unk_token="[UNK]", end_of_word_suffix="</w>")),
    "unigram": lambda: tokenizers.Tokenizer(models.Unigram()),
}
TRAINERS: dict[str, type] = {
    "word level": trainers.WordLevelTrainer,
    "wordpiece": trainers.WordPieceTrainer,
    "bpe with suffix": trainers.BpeTrainer,
    "unigram": trainers.UnigramTrainer,
}


@pytest.mark.parametrize("name", JSON_MODELS)
@pytest.mark.parametrize("normalizer", [None, normalizers.NFC(), normalizers.BertNormalizer()], ids=["", "NFC", "Bert"])
@pytest.mark.parametrize("cut", [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()], ids=["words", "▁"])
def test_ids_equal_those_of_tokenizers(name: str, normalizer: Any, cut: Any, tmp_path: Path) -> None:
    theirs = JSON_MODELS[name]()
    theirs.pre_tokenizer = cut
    if normalizer:
        theirs.normalizer = normalizer
    options = {"unk_token": "[UNK]"} if name == "unigram" else {}
    trainer = TRAINERS[name](vocab_size=500, special_tokens=["[UNK]", END], show_progress=False, **options)
    theirs.train_from_iterator(LEARNED_FROM, trainer)
    theirs.save(str(tmp_path / "tokenizer.json"))
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))  # not all digits of a score survive
    theirs.encode_special_tokens = True
    check(Tokenizer.load(tmp_path), lambda text: theirs.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("model", [models.WordLevel({"a": 0}), models.WordPiece({"a": 0}), models.Unigram([("a", 0)])])
def test_a_word_without_a_token_is_named(model: models.Model) -> None:
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = Tokenizer(backend)
    assert tokenizer.encode("A a") == [0, 0]
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch(["a", text])):
        with pytest.raises(
            ValueError, match=r"there is no token for 'dog', and the tokenizer has no unknown token; use"
        ):
            encode("a Dog")


@pytest.mark.parametrize(
    ("vocab", "end", "size"),
    [
        ({"a": 0, "b": 5, "</s>": 3}, ("</s>", 3), 6),
        ({"a": 0, "b": 5}, ("<|endoftext|>", 2), 6),  # the library takes the number of tokens
        ({"a": 1, "b": 2, "</s>": 9}, ("</s>", 9), 10),
    ],
)
def test_vocab_size_is_the_highest_id_plus_1(vocab: dict[str, int], end: tuple[str, int], size: int) -> None:
    tokenizer = Tokenizer(tokenizers.Tokenizer(models.BPE(vocab, [])))
    assert (tokenizer.end_token, tokenizer.end_id) == end
    assert tokenizer.vocab_size == size
    assert tokenizer.encode("ab") == [vocab["a"], vocab["b"]]
    assert Tokenizer.from_json(tokenizer.to_json()).vocab_size == size
    assert tokenizer.token(4) == tokenizer.decode([4]) == ""


def test_an_end_token_whose_id_would_be_that_of_another_token_is_refused() -> None:
    with pytest.raises(ValueError, match=r"its ids have holes, so that <\|endoftext\|> cannot be added"):
        Tokenizer(tokenizers.Tokenizer(models.BPE({"a": 0, "b": 2}, [])))


def test_an_id_beyond_every_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match=r"its highest id is 1,000,000,000; it must be less than 16,777,216"):
        Tokenizer(tokenizers.Tokenizer(models.BPE({"a": 10**9, "</s>": 0}, [])))


def test_an_added_token_with_another_id_than_in_the_file_is_refused() -> None:
    content = json.loads(Tokenizer(tokenizers.Tokenizer(models.BPE({"a": 0}, []))).to_json())
    content["added_tokens"][0]["id"] = 7
    with pytest.raises(ValueError, match=r"has the id 7, but the library tokenizers gives it 1, the size"):
        Tokenizer.from_json(json.dumps(content))


@pytest.mark.parametrize(
    "model",
    [
        models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"),
        models.WordLevel({"a": 0, "</s>": 1}, unk_token="</s>"),
        models.WordPiece({"a": 0, "</s>": 1, "##a": 2, "[UNK]": 3}, unk_token="[UNK]"),
        models.Unigram([("a", -1.0), ("</s>", -2.0), *((letter, -3.0) for letter in "</s>")], unk_id=0),
        models.Unigram([("a", -1.0), ("</s>", -2.0)], unk_id=0),
        models.BPE(
            {"a": 0, "<": 1, "/": 2, "s": 3, ">": 4, "</": 5, "s>": 6, "</s>": 7},
            [("<", "/"), ("s", ">"), ("</", "s>")],
        ),
    ],
)
def test_a_piece_that_text_is_encoded_to_is_not_the_end_token(model: models.Model) -> None:
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for tokenizer in (Tokenizer(backend), Tokenizer.from_json(backend.to_str())):
        assert tokenizer.end_token == "<|endoftext|>"
        assert all(
            tokenizer.end_id not in tokenizer.encode(text) for text in ("</s>", "a </s> a", "</s>a", "\U0010ffff")
        )


def test_a_special_end_token_comes_before_an_ordinary_one() -> None:
    backend = tokenizers.Tokenizer(models.BPE({"a": 0, "</s>": 1}, []))
    backend.add_special_tokens(["[EOS]"])
    assert Tokenizer(backend).end_token == "[EOS]"
