"""Training of each type of tokenizer on a stream of documents, with the library `tokenizers`.

    bpe      pairs of bytes merged, the most frequent first (Sennrich et al. 2016, on bytes as in GPT-2)
    unigram  pieces of the likeliest segmentation (Kudo 2018, SentencePiece's method)
    char     every character a token

Every byte has a token in each of them, so nothing is ever unknown; for unigram and char these are the tokens <0x00> to
<0xFF>, which spell the characters that have none. Documents are read once: memory grows with the number of distinct
words, not with the corpus. The same documents give the same tokenizer.

Unigram has the space in front of a word in that word's piece, as SentencePiece's Metaspace does, but as a space and
not as U+2581, so that a U+2581 in a text stays what it is. Text is brought to NFKC first, or to NFC where it has
full-width forms: NFKC would turn the punctuation of Chinese into that of English.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Literal, get_args

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

TokenizerType = Literal["bpe", "unigram", "char"]
END_OF_TEXT = "<|endoftext|>"
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
BYTE_LETTERS = sorted(set("".join(BYTE_TOKENS)))
"""What byte tokens are written with: all of it has tokens, so that these letters in a text stay letters."""
BYTE_SCORE = -1000.0
"""Log-probability of a byte token: less than that of its letters one by one."""
MIN_VOCAB_SIZE: dict[TokenizerType, int] = {"bpe": 257, "unigram": 257 + 2 * len(BYTE_LETTERS), "char": 257}
"""256 bytes and END_OF_TEXT; for unigram also the letters of byte tokens and as many pieces."""
SAMPLE_CHARACTERS = 2**24
"""The beginning of the text from which unigram takes its characters."""
MAX_HAN_RUN = 4
"""Han characters that training sees as one word. Without spaces nearly every clause would be a distinct word."""

WORDS = r" ?\p{Han}+| ?[^\s\p{Han}]+|\s+(?!\S)|\s+"
"""How unigram cuts a text: at spaces, as Metaspace does, and where Han begins and ends."""
FULL_WIDTH = re.compile("[\u3000\uff01-\uff60]")
NO_TOKEN = "\0"
"""Stands for a character without a token in what unigram is trained on."""

log = logging.getLogger(__name__)


def train(documents: Iterable[str], vocab_size: int, tokenizer_type: TokenizerType) -> tokenizers.Tokenizer:
    """A tokenizer of `vocab_size` tokens; of fewer, with a warning, if the text has no more to give.

    Raises:
        ValueError: if there is no such type, or vocab_size is below its MIN_VOCAB_SIZE.
    """
    if tokenizer_type not in get_args(TokenizerType):
        raise ValueError(f"tokenizer_type is {tokenizer_type!r}; it can be {', '.join(get_args(TokenizerType))}")
    if vocab_size < (least := MIN_VOCAB_SIZE[tokenizer_type]):
        raise ValueError(
            f"vocab_size is {vocab_size}; a {tokenizer_type} tokenizer needs at least {least}: "
            f"256 bytes, {END_OF_TEXT}" + (" and some pieces" if tokenizer_type == "unigram" else "")
        )
    backend = {"bpe": _bpe, "unigram": _unigram, "char": _char}[tokenizer_type](documents, vocab_size)
    if END_OF_TEXT not in backend.get_vocab():
        backend.add_special_tokens([END_OF_TEXT])
    size = backend.get_vocab_size()
    if size < vocab_size:
        log.warning(f"the {tokenizer_type} tokenizer has {size} tokens, not {vocab_size}: the text has no more to give")
    return backend


def _bpe(documents: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    han = pre_tokenizers.Split(Regex(_with_bounded_han(r" ?\p{Han}+")), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([han, words])
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
    # most of the vocabulary is for longer pieces
    characters = {*BYTE_LETTERS, *_most_frequent(counts, (room - len(BYTE_LETTERS)) // 2, "unigram")} - {NO_TOKEN}
    # the letters of a byte token, or of the end, must not become one piece
    others = re.compile(rf"[^{re.escape(''.join(sorted(characters)))}]|<(?=0x|\|endoftext)")
    texts = (others.sub(NO_TOKEN, text) for text in chain(sample, rest))

    normalizer = normalizers.NFC() if full_width else normalizers.NFKC()
    trained = tokenizers.Tokenizer(models.Unigram())
    trained.normalizer = normalizer
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(NO_TOKEN, "removed"),
            pre_tokenizers.Split(Regex(_with_bounded_han(WORDS)), "isolated"),
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
    backend = tokenizers.Tokenizer(models.BPE(vocab, [], byte_fallback=True))  # with nothing to merge
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return backend


def _beginning(documents: Iterator[str]) -> Iterator[str]:
    """Documents of SAMPLE_CHARACTERS in all, or a few more."""
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
            "characters; it spells the others in bytes"
        )
    return sorted(counts, key=lambda character: (-counts[character], character))[:room]


def _with_bounded_han(words: str) -> str:
    return words.replace(r"\p{Han}+", rf"\p{{Han}}{{1,{MAX_HAN_RUN}}}")


def _settled(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Pieces and scores without what varies from one run of the library to the next.

    That is the last digits, and which of the characters that are never a piece of their own gets which of the lowest
    scores, 0.0001 apart.
    """
    lowest = round(min(score for _, score in pieces), 6)
    characters = sorted(piece for piece, _ in pieces if len(piece) == 1)
    step = 0.0001
    unused = {piece for piece, score in pieces if len(piece) == 1 and score < lowest + step * len(characters)}
    order = {piece: number for number, piece in enumerate(c for c in characters if c in unused)}
    settled = [(piece, round(lowest + step * order[piece] if piece in order else score, 6)) for piece, score in pieces]
    return sorted(settled, key=lambda item: (-item[1], item[0]))
