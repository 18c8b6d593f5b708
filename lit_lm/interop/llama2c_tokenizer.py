"""Tokenizers for llama2.c: the ids that run.c expects, and its tokenizer.bin.

run.c gives two kinds of tokens fixed ids: 1 begins and ends a text, and 3 + b is the byte b. `renumbered` therefore
numbers the tokens of an exported model anew.

run.c puts a space before a text, looks up each character (or its bytes), and merges the two neighboring tokens that
make the token of the highest score until none do. It does not divide the text into words first, so it splits some texts
into other tokens than the tokenizer of the model; `run_c_ids` tells which.

Source: tokenizer.py and run.c of https://github.com/karpathy/llama2.c.
"""

import json
import struct
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from lit_lm.files import write_whole
from lit_lm.tokenizer.formats import byte_letters
from lit_lm.tokenizer.tokenizer import Tokenizer

END_ID, FIRST_BYTE_ID = 1, 3
MIN_VOCAB_SIZE = FIRST_BYTE_ID + 256
UNREACHABLE = -1e10
"""Score of a token that run.c never merges to: it must be higher."""


class Piece(NamedTuple):
    """A token in tokenizer.bin."""

    score: float
    text: bytes


def renumbered(tokenizer: Tokenizer, vocab_size: int) -> tuple[Tokenizer, list[int]]:
    """The same tokenizer with the ids that run.c expects, and the earlier id of each id.

    The end token gets END_ID, the bytes the ids from FIRST_BYTE_ID on, and all others, with the ids up to `vocab_size`
    that have no token, the remaining ids in their order.

    Raises:
        ValueError: if it has no token for each byte, or there are too few ids.
    """
    vocab = tokenizer.backend.get_vocab()
    letters = byte_letters()
    # tokenizers that are not byte-level may know these letters, but as the characters that they are
    is_byte_level = vocab.keys() >= {*letters.values()} and tokenizer.decode([vocab[letters[ord(" ")]]]) == " "
    if tokenizer.type != "bpe" or not is_byte_level:
        raise ValueError(
            f"llama2.c needs a byte-level bpe tokenizer, and this is another one ({tokenizer.type}); train with "
            "--data.tokenizer_type bpe, or export to hf"
        )
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(f"llama2.c cannot express vocab_size {vocab_size}; it must be at least {MIN_VOCAB_SIZE}")
    fixed = {END_ID: tokenizer.end_id} | {FIRST_BYTE_ID + byte: vocab[letter] for byte, letter in letters.items()}
    others = iter(sorted(set(range(vocab_size)) - set(fixed.values())))
    earlier = [fixed[number] if number in fixed else next(others) for number in range(vocab_size)]
    number_of = {old: new for new, old in enumerate(earlier)}
    content = json.loads(tokenizer.to_json())
    content["model"]["vocab"] = {token: number_of[old] for token, old in vocab.items()}
    content["added_tokens"] = [token | {"id": number_of[token["id"]]} for token in content["added_tokens"]]
    content["post_processor"] = None  # may contain ids; encode does not use it
    return Tokenizer.from_json(json.dumps(content)), earlier


def pieces_of(tokenizer: Tokenizer, vocab_size: int) -> list[Piece]:
    """The tokens for tokenizer.bin: their bytes, and scores by which the earliest merge comes first.

    A C string cannot contain the byte 0. It is written as <0x00>, and no text is encoded to such a token.

    Raises:
        ValueError: if two tokens have the same bytes.
    """
    merges = json.loads(tokenizer.to_json())["model"]["merges"]
    scores: dict[str, float] = {}
    for rank, (left, right) in enumerate(merges):
        scores.setdefault(left + right, -float(rank))
    bytes_ = {letter: byte for byte, letter in byte_letters().items()}
    special, pieces = tokenizer.special_tokens, []
    for number in range(vocab_size):
        token = tokenizer.token(number) or f"[PAD{number}]"
        text = bytes(map(bytes_.__getitem__, token)) if bytes_.keys() >= {*token} else token.encode()
        score = UNREACHABLE if token in special or 0 in text else scores.get(token, UNREACHABLE)
        pieces.append(Piece(score, text.replace(b"\0", b"<0x00>")))
    text, count = Counter(piece.text for piece in pieces).most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"{count} tokens have the text {text.decode(errors='replace')!r}; llama2.c needs distinct ones"
        )
    return pieces


def write_pieces(pieces: Sequence[Piece], path: Path) -> None:
    """Write tokenizer.bin: the length of the longest token, and score, length and bytes of each."""
    with write_whole(path) as file:
        file.write(struct.pack("<i", max(len(piece.text) for piece in pieces)))
        for score, text in pieces:
            file.write(struct.pack("<fi", score, len(text)) + text)


def read_pieces(path: Path) -> list[Piece]:
    """Read what `write_pieces` has written."""
    content, offset, pieces = path.read_bytes(), 4, []
    while offset < len(content):
        score, length = struct.unpack_from("<fi", content, offset)
        offset += 8 + length
        pieces.append(Piece(score, content[offset - length : offset]))
    return pieces


def run_c_ids(text: str, pieces: Sequence[Piece]) -> list[int]:
    """The ids that run.c gives a text, without END_ID, which it puts before them."""
    numbers = {piece.text: number for number, piece in enumerate(pieces)}
    ids = [numbers[b" "]] if text else []
    for character in text:
        encoded = character.encode()
        ids += [numbers[encoded]] if encoded in numbers else [FIRST_BYTE_ID + byte for byte in encoded]
    while True:
        merged = [numbers.get(pieces[left].text + pieces[right].text, -1) for left, right in pairwise(ids)]
        scores = [UNREACHABLE if number < 0 else pieces[number].score for number in merged]
        if max(scores, default=UNREACHABLE) <= UNREACHABLE:
            return ids
        place = scores.index(max(scores))
        ids[place : place + 2] = [merged[place]]
