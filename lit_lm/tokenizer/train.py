"""Training of tokenizers on a stream of documents, with the library `tokenizers`.

    bpe      merges pairs of bytes, most frequent first (Sennrich et al. 2016, byte-level as in GPT-2)
    unigram  pieces of the most likely segmentation (Kudo 2018, as in SentencePiece)
    char     one token per character

Every type has a token for each byte, so no text is unknown; in unigram and char, these are the tokens <0x00> to <0xFF>,
which encode the characters without a token of their own. Documents are read once: memory grows with the number of
distinct words, not with the corpus. The same documents give the same tokenizer.

In unigram, a word's piece includes the space before it, as with SentencePiece's Metaspace, but as a space and not as
U+2581, so that a U+2581 in a text is preserved. Text is normalized to NFKC, or to NFC if the corpus has full-width
forms: NFKC would turn Chinese punctuation into English punctuation.

The user's special tokens, such as <|user|>, are added tokens that are not marked as special: the library then finds
their names in a text before it looks at words. Training leaves them out of the text, so no other token has a part of
them.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Literal, get_args

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

TokenizerType = Literal["bpe", "unigram", "char"]
END_OF_TEXT = "<|endoftext|>"
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
BYTE_LETTERS = sorted(set("".join(BYTE_TOKENS)))
"""Letters in the names of byte tokens. Each has a token, so that a text with such a name is encoded as letters."""
BYTE_SCORE = -1000.0
"""Log-probability of a byte token: lower than that of its name, letter by letter."""
MIN_VOCAB_SIZE: dict[TokenizerType, int] = {"bpe": 257, "unigram": 257 + 2 * len(BYTE_LETTERS), "char": 257}
"""256 bytes and END_OF_TEXT; for unigram also BYTE_LETTERS and the same number of pieces."""
MAX_VOCAB_SIZE = 2**24
"""More than any text yields: the libraries reserve memory for the whole vocabulary."""
SAMPLE_CHARACTERS = 2**24
"""Length of the beginning of the text from which unigram takes its characters."""
MAX_WORD = 128
"""Length from which on training cuts a word, in characters (bpe: bytes): with longer words, bpe takes quadratic time,
and unigram may crash. Encoding does not cut words."""
LONG_WORD_PART = 8
"""Length of the parts of a longer word for unigram, so that they are not all distinct: each costs time."""
MAX_HAN_RUN = 4
"""Most Han characters that training treats as one word. Without spaces, nearly every clause would be a distinct word.
"""

WORDS = r" ?\p{Han}+| ?[^\s\p{Han}]+|\s+(?!\S)|\s+"
"""Unigram's pre-tokenization pattern: cuts at spaces, as Metaspace does, and where runs of Han begin and end."""
FULL_WIDTH = re.compile("[\u3000\uff01-\uff60]")
RESERVED = {END_OF_TEXT, *BYTE_TOKENS}
SPECIAL_TOKEN = re.compile(r"<[^\s<>]+>|\[[^\s\[\]]+\]")
"""Form of a special token: that of markup, so that no ordinary word of a text is one."""
NO_TOKEN = "\0"
"""Replaces characters without a token in unigram's training text."""

log = logging.getLogger(__name__)


def train(
    documents: Iterable[str], vocab_size: int, tokenizer_type: TokenizerType, special_tokens: Sequence[str] = ()
) -> tokenizers.Tokenizer:
    """Train a tokenizer of `vocab_size` tokens, or fewer, with a warning, if the text yields no more.

    Args:
        documents: Texts to train on.
        vocab_size: Number of tokens, including END_OF_TEXT and `special_tokens`.
        tokenizer_type: Type of tokenizer.
        special_tokens: Names that are one token each; they get the last ids, in this order.

    Raises:
        ValueError: if the type is unknown, vocab_size is below its MIN_VOCAB_SIZE or above MAX_VOCAB_SIZE, or a special
            token is invalid.
    """
    if tokenizer_type not in get_args(TokenizerType):
        raise ValueError(f"tokenizer_type is {tokenizer_type!r}; it can be {', '.join(get_args(TokenizerType))}")
    if problems := special_token_problems(special_tokens):
        raise ValueError("\n".join(problems))
    if vocab_size < (least := MIN_VOCAB_SIZE[tokenizer_type] + len(special_tokens)):
        needed = ["256 bytes", END_OF_TEXT, *special_tokens, *(["some pieces"] if tokenizer_type == "unigram" else [])]
        raise ValueError(
            f"vocab_size is {vocab_size}; a {tokenizer_type} tokenizer needs at least {least}: {', '.join(needed)}"
        )
    if vocab_size > MAX_VOCAB_SIZE:
        raise ValueError(f"vocab_size is {vocab_size}; it must be at most {MAX_VOCAB_SIZE:,}")
    if special_tokens:
        documents = _without(special_tokens, documents)
    room = vocab_size - len(special_tokens)
    backend = {"bpe": _bpe, "unigram": _unigram, "char": _char}[tokenizer_type](documents, room)
    if END_OF_TEXT not in backend.get_vocab():
        backend.add_special_tokens([END_OF_TEXT])
    backend.add_tokens([AddedToken(name, special=False, normalized=False) for name in special_tokens])
    for name in special_tokens:
        if backend.decode(backend.encode(name).ids) != name:  # bpe reads some letters, such as é, as bytes
            raise ValueError(f"special_tokens has {name}, which cannot be decoded; use only ASCII characters in it")
    size = backend.get_vocab_size()
    if size < vocab_size:
        log.warning(f"the {tokenizer_type} tokenizer has {size} tokens, not {vocab_size}: the text yields no more")
    return backend


def special_token_problems(names: Sequence[str]) -> list[str]:
    """What is wrong with special tokens, if anything."""
    problems = [
        f"special_tokens has {name!r}; a special token must look like <|user|> or [USER], without spaces"
        for name in names
        if not SPECIAL_TOKEN.fullmatch(name) or not name.isprintable()
    ]
    problems += [f"special_tokens has {name}, which has a meaning already" for name in names if name in RESERVED]
    if len(set(names)) < len(names):
        problems.append(f"special_tokens has the same token twice: {', '.join(names)}")
    return problems


def _without(names: Sequence[str], documents: Iterable[str]) -> Iterator[str]:
    """Yield the parts of the documents between the names."""
    pattern = re.compile("|".join(map(re.escape, names)))
    return chain.from_iterable(map(pattern.split, documents))


def _bpe(documents: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    han = pre_tokenizers.Split(Regex(_with_bounded_han(r" ?\p{Han}+")), "isolated")
    parts = pre_tokenizers.Split(Regex(rf"(?m:.){{{MAX_WORD}}}"), "isolated")  # Oniguruma's m: . matches line feeds
    backend.pre_tokenizer = pre_tokenizers.Sequence([han, words, parts])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(documents, trainer)
    backend.pre_tokenizer = words
    return backend


def _unigram(documents: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    room = vocab_size - len(BYTE_TOKENS) - 1
    rest = iter(documents)
    sample = list(_beginning(rest))
    counts = Counter(chain.from_iterable(sample))
    full_width = any(FULL_WIDTH.match(character) for character in counts)
    # at most half of the vocabulary is for characters
    characters = {*BYTE_LETTERS, *_most_frequent(counts, (room - len(BYTE_LETTERS)) // 2, "unigram")} - {NO_TOKEN}
    # the name of a byte token, or of END_OF_TEXT, must not become one piece
    others = re.compile(rf"[^{re.escape(''.join(sorted(characters)))}]|<(?=0x|\|endoftext)")
    texts = (others.sub(NO_TOKEN, text) for text in chain(sample, rest))

    normalizer = normalizers.NFC() if full_width else normalizers.NFKC()
    trained = tokenizers.Tokenizer(models.Unigram())
    trained.normalizer = normalizer
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(NO_TOKEN, "removed"),
            pre_tokenizers.Split(Regex(f"{_part_of_a_long_word()}|{_with_bounded_han(WORDS)}"), "isolated"),
        ]
    )
    trainer = trainers.UnigramTrainer(vocab_size=room, initial_alphabet=BYTE_LETTERS, show_progress=False)
    pieces = [(letter, 0.0) for letter in BYTE_LETTERS]
    if counts.keys() - {NO_TOKEN}:
        trained.train_from_iterator(texts, trainer)
        pieces = _settled(json.loads(trained.to_str())["model"]["vocab"])

    bytes_ = [(token, BYTE_SCORE) for token in BYTE_TOKENS]
    backend = tokenizers.Tokenizer(models.Unigram([*bytes_, *pieces], unk_id=0, byte_fallback=True))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), "isolated")
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return backend


def _char(documents: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    counts: Counter[str] = Counter()
    for document in documents:
        counts.update(document)
    characters = sorted(_most_frequent(counts, vocab_size - len(BYTE_TOKENS) - 1, "char"))
    vocab = {token: number for number, token in enumerate([*BYTE_TOKENS, *characters])}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [], byte_fallback=True))  # no merges
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return backend


def _beginning(documents: Iterator[str]) -> Iterator[str]:
    """Yield documents until they have at least SAMPLE_CHARACTERS."""
    characters = 0
    for document in documents:
        yield document
        characters += len(document)
        if characters >= SAMPLE_CHARACTERS:
            return


def _most_frequent(counts: Counter[str], room: int, tokenizer_type: TokenizerType) -> list[str]:
    if len(counts) > room:
        log.warning(
            f"the {tokenizer_type} tokenizer has room for the {room} most frequent of the text's {len(counts)} "
            "characters; the others are encoded as bytes"
        )
    return sorted(counts, key=lambda character: (-counts[character], character))[:room]


def _with_bounded_han(words: str) -> str:
    return words.replace(r"\p{Han}+", rf"\p{{Han}}{{1,{MAX_HAN_RUN}}}")


def _part_of_a_long_word() -> str:
    rest = MAX_WORD - LONG_WORD_PART
    return "|".join(
        rf"{space}{kind}{{{LONG_WORD_PART}}}(?={kind}{{{rest}}})"
        for space, kind in ((" ?", r"[^\s\p{Han}]"), ("", r"\s"))
    )


def _settled(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Remove the differences between runs of the library from pieces and scores.

    The last digits differ, and the order of the lowest scores, 0.0001 apart, which the library assigns to characters
    that are never a piece of their own.
    """
    lowest = round(min(score for _, score in pieces), 6)
    characters = sorted(piece for piece, _ in pieces if len(piece) == 1)
    step = 0.0001
    unused = {piece for piece, score in pieces if len(piece) == 1 and score < lowest + step * len(characters)}
    order = {piece: number for number, piece in enumerate(c for c in characters if c in unused)}
    settled = [(piece, round(lowest + step * order[piece] if piece in order else score, 6)) for piece, score in pieces]
    return sorted(settled, key=lambda item: (-item[1], item[0]))
