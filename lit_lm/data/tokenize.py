"""Documents to token ids: exactly those of the library `tokenizers`, several times as fast where that is possible.

For a byte-level BPE with GPT-2's pre-tokenizer, which is what `Tokenizer.train` makes, `tiktoken` does the work: it
takes many documents in one call, runs outside Python's lock, and returns an array. It is only asked what it is known to
answer alike: `ByteLevelBPE.of` refuses any other kind of tokenizer, every character is tried in both libraries before
it is trusted, and a sample of each batch is encoded by both. All the rest goes through `tokenizers`.
"""

import json
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tiktoken
import tokenizers
from tokenizers import models, pre_tokenizers

from lit_lm.data.readers import Piece
from lit_lm.tokenizer.formats import byte_letters
from lit_lm.tokenizer.tokenizer import END_OF_TEXT, Tokenizer

Ids = npt.NDArray[np.integer[Any]]

BATCH_CHARACTERS = 2**18
"""Text that is encoded at a time."""
SAMPLE_CHARACTERS = 2**10
"""Text of each batch that both libraries encode."""
MAX_WORKERS = 16
"""One thread reads; it does not keep more busy."""
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How GPT-2 cuts text into pre-tokens; the library's ByteLevel has it built in."""
CUT = re.compile(r"\S(?=[ \n])")
"""Where one pre-token ends and another begins whatever surrounds them: no pre-token has a blank after a non-blank."""


@dataclass(frozen=True)
class Chunk:
    """Some documents' tokens, on their way into a store."""

    ids: Ids
    """Token ids, END_OF_TEXT after each document."""
    documents: int
    """How many documents end here."""
    bytes: int
    """The text's length as UTF-8."""
    characters: int
    """The text's length in Unicode code points."""


@dataclass(frozen=True)
class _Batch:
    texts: list[str]
    ended: bool
    """False for a part of a long document that is not its last."""


def id_dtype(vocab_size: int) -> str:
    """The smallest type that stores a vocabulary's ids: uint16 or uint32, little-endian."""
    return "<u2" if vocab_size <= 2**16 else "<u4"


def tokenize(pieces: Iterable[Piece], tokenizer: Tokenizer) -> Iterator[Chunk]:
    """The documents' tokens, encoded on all cores, in the documents' order.

    A chunk is what one batch of about BATCH_CHARACTERS gave. At most two batches a core are in memory; for a byte-level
    BPE a long document is cut into several, so memory does not grow with it unless it has no blanks.

    Raises:
        ValueError: if the two libraries give a sample different ids.
    """
    encoder = _Encoder(tokenizer)
    workers = min(os.cpu_count() or 1, MAX_WORKERS)
    pending: deque[Future[Chunk]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for batch in _batches(pieces, cut=encoder.fast is not None):
                if len(pending) == 2 * workers:
                    yield pending.popleft().result()
                pending.append(pool.submit(encoder.encode, batch))
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _batches(pieces: Iterable[Piece], *, cut: bool) -> Iterator[_Batch]:
    texts: list[str] = []
    size = 0
    for text, ends in pieces:
        start = 0
        parts = []
        while cut and (match := CUT.search(text, start + BATCH_CHARACTERS)):
            parts.append(_Batch([text[start : match.end()]], ended=False))
            start = match.end()
        if not ends:
            parts.append(_Batch([text[start:]], ended=False))
        if parts and texts:
            yield _Batch(texts, ended=True)
            texts, size = [], 0
        yield from parts
        if ends:
            texts.append(text[start:])
            size += len(texts[-1])
        if size >= BATCH_CHARACTERS:
            yield _Batch(texts, ended=True)
            texts, size = [], 0
    if texts:
        yield _Batch(texts, ended=True)


class _Encoder:
    """Batches to chunks, by tiktoken where it can, by tokenizers where it cannot."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.fast = ByteLevelBPE.of(tokenizer)
        self._tokenizer = tokenizer
        self._dtype = id_dtype(tokenizer.vocab_size)

    def encode(self, batch: _Batch) -> Chunk:
        characters = sum(map(len, batch.texts))
        num_bytes = sum(len(text) if text.isascii() else len(text.encode()) for text in batch.texts)
        ids = self.fast.encode(batch.texts, ended=batch.ended) if self.fast else None
        if ids is None:
            ids = self._by_library(batch)
        else:
            self._compare(batch.texts[0], ids)
        return Chunk(ids, len(batch.texts) if batch.ended else 0, num_bytes, characters)

    def _by_library(self, batch: _Batch) -> Ids:
        end = [self._tokenizer.end_id] if batch.ended else []
        rows = self._tokenizer.encode_batch(batch.texts)
        return np.concatenate([np.array(row + end, dtype=self._dtype) for row in rows])

    def _compare(self, text: str, ids: Ids) -> None:
        if len(text) > SAMPLE_CHARACTERS:
            match = CUT.search(text, SAMPLE_CHARACTERS, 4 * SAMPLE_CHARACTERS)
            if match is None:
                return
            text = text[: match.end()]
        expected = self._tokenizer.encode(text)
        if ids[: len(expected)].tolist() != expected:
            raise ValueError(
                f"tiktoken {tiktoken.__version__} and tokenizers {tokenizers.__version__} give different ids; "
                f"install other versions to go on, and please report the text: {text!r}"
            )


class ByteLevelBPE:
    """GPT-2's kind of tokenizer run by tiktoken, with the ids of `tokenizers`."""

    def __init__(self, ranks: dict[bytes, int], ids: Ids) -> None:
        """From the rank of each token but END_OF_TEXT, and the id of each rank, END_OF_TEXT's last."""
        self.encoding = _encoding(ranks)
        self.ids = ids
        self._characters = _Characters()

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "ByteLevelBPE | None":
        """The same tokenizer, or None unless it is certain to be the same."""
        spec = json.loads(tokenizer.to_json())
        if not _is_gpt2_pipeline(spec):
            return None
        vocab, merges = spec["model"]["vocab"], spec["model"]["merges"]
        in_bytes = {name: bytes([byte]) for byte, name in byte_letters().items()}
        for left, right in merges:
            if left not in in_bytes or right not in in_bytes or left + right in in_bytes:
                return None
            in_bytes[left + right] = in_bytes[left] + in_bytes[right]
        # tiktoken takes a pre-token that is a token as it is, and joins any two tokens whose bytes make a third. Both
        # give what the merges give if the merges can make every token from its bytes.
        if vocab.keys() - {END_OF_TEXT} != in_bytes.keys():
            return None
        model = tokenizer.backend.model
        if any([token.id for token in model.tokenize(name)] != [vocab[name]] for name in in_bytes):
            return None
        ids = np.array([*(vocab[name] for name in in_bytes), tokenizer.end_id], dtype=id_dtype(tokenizer.vocab_size))
        return cls({token: rank for rank, token in enumerate(in_bytes.values())}, ids)

    def encode(self, texts: list[str], *, ended: bool = True) -> Ids | None:
        """The texts' ids, END_OF_TEXT after each if `ended`; None if `tokenizers` has to be asked."""
        end = END_OF_TEXT if ended else ""
        text = end.join([*texts, ""])
        if text.count(END_OF_TEXT) != len(texts) * ended or not self._characters.trusted(text):
            return None
        try:
            ranks = self.encoding.encode_to_numpy(text, allowed_special={END_OF_TEXT}, disallowed_special=())
        except ValueError:  # its regex engine gives up on a run of a million blanks
            return None
        return self.ids[ranks]


def _encoding(ranks: dict[bytes, int]) -> tiktoken.Encoding:
    return tiktoken.Encoding(
        "lit-lm", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)}
    )


def _is_gpt2_pipeline(spec: dict[str, Any]) -> bool:
    """Whether a tokenizer.json does nothing but GPT-2's pre-tokens, byte-level BPE, and END_OF_TEXT."""
    steps = {name for name, value in spec.items() if value}
    options = {name for name, value in spec["model"].items() if value}
    pre, post = spec["pre_tokenizer"] or {}, spec["post_processor"] or {}
    return (
        steps <= {"version", "added_tokens", "pre_tokenizer", "post_processor", "decoder", "model"}
        and options <= {"type", "vocab", "merges", "unk_token", "fuse_unk"}
        and spec["model"]["type"] == "BPE"
        and (pre.get("type"), pre.get("add_prefix_space"), pre.get("use_regex")) == ("ByteLevel", False, True)
        and post.get("type") in (None, "ByteLevel")  # moves offsets, not ids
        and [(token["content"], token["special"]) for token in spec["added_tokens"]] == [(END_OF_TEXT, True)]
    )


class _Characters:
    """Which characters both libraries take for the same kind: letter, number, blank or other.

    Their regex engines know different versions of Unicode. Each character is tried when it is first seen.
    """

    UNSEEN, TRUSTED, DISPUTED = range(3)

    def __init__(self) -> None:
        self._state = np.zeros(0x110000, dtype=np.uint8)
        # A vocabulary whose ids show the kind: a letter, a number or another sign joins the first byte of what follows
        # only if that is of its own kind.
        in_bytes = {name: bytes([byte]) for byte, name in byte_letters().items()}
        merges = [(sign, name) for sign in "a1!" for name in in_bytes]
        in_bytes |= {left + right: in_bytes[left] + in_bytes[right] for left, right in merges}
        ranks = {token: rank for rank, token in enumerate(in_bytes.values())}
        self._tiktoken = _encoding(ranks)
        vocab = {name: ranks[token] for name, token in in_bytes.items()}
        self._library = tokenizers.Tokenizer(models.BPE(vocab, merges))
        self._library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)

    def trusted(self, text: str) -> bool:
        """Whether all characters of a text are."""
        if text.isascii():
            return True
        characters = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        states = self._state[characters]
        if not states.all():
            unseen = np.unique(characters[states == self.UNSEEN])
            for character in map(chr, unseen):
                self._state[ord(character)] = self.TRUSTED if self.agree(character) else self.DISPUTED
            states = self._state[characters]
        return bool((states == self.TRUSTED).all())

    def agree(self, characters: str) -> bool:
        """Whether the libraries agree on each of some characters."""
        probe = "".join(f"a{character}1{character}!{character}" for character in characters)
        return self._library.encode(probe).ids == self._tiktoken.encode_ordinary(probe)
