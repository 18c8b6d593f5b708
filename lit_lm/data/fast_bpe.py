"""Byte-level BPE with `tiktoken`, giving exactly the ids of the library `tokenizers`.

tiktoken encodes many documents in one call, releases the GIL, and returns an array. It is used only where both
libraries are known to agree: `ByteLevelBPE.of` accepts only a byte-level BPE with GPT-2's pre-tokenizer, which is what
`Tokenizer.train` makes, and every character is tried in both libraries before it is trusted.
"""

import json
from typing import Any

import numpy as np
import tiktoken
import tokenizers
from tokenizers import models, pre_tokenizers

from lit_lm.data.ids import StoredIds, id_dtype
from lit_lm.tokenizer.formats import byte_letters
from lit_lm.tokenizer.tokenizer import END_OF_TEXT, Tokenizer

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2's pre-tokenization pattern, which is built into the library's ByteLevel."""


class ByteLevelBPE:
    """A byte-level BPE run by tiktoken, with the ids of `tokenizers`."""

    def __init__(self, ranks: dict[bytes, int], ids: StoredIds) -> None:
        """
        Args:
            ranks: Rank of each token except END_OF_TEXT.
            ids: Id of each rank, followed by the id of END_OF_TEXT.
        """
        self.encoding = _encoding(ranks)
        self.ids = ids
        self._characters = _Characters()

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "ByteLevelBPE | None":
        """The equivalent of a tokenizer; None unless certain to be equivalent."""
        spec = json.loads(tokenizer.to_json())
        if "model" not in spec or not _is_gpt2_pipeline(spec):  # without a model, it is one of SentencePiece
            return None
        vocab, merges = spec["model"]["vocab"], spec["model"]["merges"]
        in_bytes = {name: bytes([byte]) for byte, name in byte_letters().items()}
        for left, right in merges:
            if left not in in_bytes or right not in in_bytes or left + right in in_bytes:
                return None
            in_bytes[left + right] = in_bytes[left] + in_bytes[right]
        # tiktoken keeps a pre-token that is a token, and joins any two tokens whose bytes make a third. Both give the
        # same as the merges if the merges can make every token from its bytes.
        if vocab.keys() - {END_OF_TEXT} != in_bytes.keys():
            return None
        model = tokenizer.backend.model
        if any([token.id for token in model.tokenize(name)] != [vocab[name]] for name in in_bytes):
            return None
        ids = np.array([*(vocab[name] for name in in_bytes), tokenizer.end_id], dtype=id_dtype(tokenizer.vocab_size))
        return cls({token: rank for rank, token in enumerate(in_bytes.values())}, ids)

    def encode(self, texts: list[str], *, ended: bool = True) -> StoredIds | None:
        """Ids of the texts, END_OF_TEXT after each if `ended`; None if they must be encoded by `tokenizers`."""
        end = END_OF_TEXT if ended else ""
        text = end.join([*texts, ""])
        if text.count(END_OF_TEXT) != len(texts) * ended or not self._characters.trusted(text):
            return None
        try:
            ranks = self.encoding.encode_to_numpy(text, allowed_special={END_OF_TEXT}, disallowed_special=())
        except ValueError:  # its regex engine fails on a run of a million blanks
            return None
        return self.ids[ranks]


def _encoding(ranks: dict[bytes, int]) -> tiktoken.Encoding:
    return tiktoken.Encoding(
        "lit-lm", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)}
    )


def _is_gpt2_pipeline(spec: dict[str, Any]) -> bool:
    """Whether a tokenizer.json has only GPT-2's pre-tokenizer, a byte-level BPE and END_OF_TEXT."""
    steps = {name for name, value in spec.items() if value}
    options = {name for name, value in spec["model"].items() if value}
    pre, post = spec["pre_tokenizer"] or {}, spec["post_processor"] or {}
    return (
        steps <= {"version", "added_tokens", "pre_tokenizer", "post_processor", "decoder", "model"}
        and options <= {"type", "vocab", "merges", "unk_token", "fuse_unk"}
        and spec["model"]["type"] == "BPE"
        and (pre.get("type"), pre.get("add_prefix_space"), pre.get("use_regex")) == ("ByteLevel", False, True)
        and post.get("type") in (None, "ByteLevel")  # changes offsets, not ids
        and [(token["content"], token["special"]) for token in spec["added_tokens"]] == [(END_OF_TEXT, True)]
    )


class _Characters:
    """Characters that both libraries classify alike, as letter, number, white space or other.

    Their regex engines support different versions of Unicode. Each character is tried when it is first seen.
    """

    UNSEEN, TRUSTED, DISPUTED = range(3)

    def __init__(self) -> None:
        self._state = np.zeros(0x110000, dtype=np.uint8)
        # A vocabulary whose ids show the class of a character: "a", "1" and "!" are merged with the first byte of the
        # next character only if it is of the same class.
        in_bytes = {name: bytes([byte]) for byte, name in byte_letters().items()}
        merges = [(sign, name) for sign in "a1!" for name in in_bytes]
        in_bytes |= {left + right: in_bytes[left] + in_bytes[right] for left, right in merges}
        ranks = {token: rank for rank, token in enumerate(in_bytes.values())}
        self._tiktoken = _encoding(ranks)
        vocab = {name: ranks[token] for name, token in in_bytes.items()}
        self._library = tokenizers.Tokenizer(models.BPE(vocab, merges))
        self._library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)

    def trusted(self, text: str) -> bool:
        """Whether both libraries classify all characters of a text alike."""
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
        """Whether both libraries agree on each of the characters."""
        probe = "".join(f"a{character}1{character}!{character}" for character in characters)
        return self._library.encode(probe).ids == self._tiktoken.encode_ordinary(probe)
