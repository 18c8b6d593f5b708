"""A byte-level BPE run by `tiktoken`, with exactly the ids of the library `tokenizers`.

tiktoken takes many documents in one call, runs outside Python's lock, and returns an array. It is only asked what it is
known to answer alike: `ByteLevelBPE.of` refuses any other tokenizer than a byte-level BPE with GPT-2's pre-tokenizer,
which is what `Tokenizer.train` makes, and every character is tried in both libraries before it is trusted.
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
"""How GPT-2 cuts text into pre-tokens; the library's ByteLevel has it built in."""


class ByteLevelBPE:
    """GPT-2's kind of tokenizer, run by tiktoken with the ids of `tokenizers`."""

    def __init__(self, ranks: dict[bytes, int], ids: StoredIds) -> None:
        """From the rank of each token but END_OF_TEXT, and the id of each rank, END_OF_TEXT's last."""
        self.encoding = _encoding(ranks)
        self.ids = ids
        self._characters = _Characters()

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "ByteLevelBPE | None":
        """The same tokenizer; None unless it is certain to be the same."""
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

    def encode(self, texts: list[str], *, ended: bool = True) -> StoredIds | None:
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
