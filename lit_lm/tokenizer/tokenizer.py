"""Text to token ids and back, on the library `tokenizers`, whatever its type and wherever it comes from.

A text that contains the letters of a special token is encoded as those letters, never as that token.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import tokenizers
from tokenizers import models

from lit_lm.tokenizer.formats import parse, read
from lit_lm.tokenizer.train import END_OF_TEXT as END_OF_TEXT
from lit_lm.tokenizer.train import TokenizerType, train

END_TOKENS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]")
"""Names of the token that ends a document, in tokenizers made here and elsewhere."""
BATCH_CHARACTERS = 2**20


class Tokenizer:
    """Text to token ids and back."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Wrap a tokenizer of the library. The end of a document is the first of END_TOKENS that it has.

        One that has none of them gets END_OF_TEXT.

        Raises:
            ValueError: if it has no tokens at all.
        """
        if not backend.get_vocab_size():
            raise ValueError("it has no tokens")
        self.end_token = next((name for name in END_TOKENS if backend.token_to_id(name) is not None), END_OF_TEXT)
        backend.add_special_tokens([self.end_token])
        backend.encode_special_tokens = True  # text is text: the letters of a special token are not that token
        self.backend = backend
        self.end_id: int = backend.get_vocab()[self.end_token]

    @classmethod
    def train(cls, documents: Iterable[str], vocab_size: int, tokenizer_type: TokenizerType = "bpe") -> "Tokenizer":
        """Learn a vocabulary of `vocab_size` tokens from a stream: see `lit_lm.tokenizer.train`.

        Raises:
            ValueError: if there is no such type, or vocab_size is too small for it.
        """
        return cls(train(documents, vocab_size, tokenizer_type))

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a tokenizer in one of the forms of `lit_lm.tokenizer.formats`.

        Raises:
            FileNotFoundError: if there is none at `path`.
            ValueError: if it cannot be read as one.
        """
        path = Path(path)
        backend = read(path)
        try:
            return cls(backend)
        except ValueError as error:
            raise ValueError(f"{path} cannot be used as a tokenizer: {error}") from None

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """The tokenizer that `to_json` wrote.

        Raises:
            ValueError: if the text is not a tokenizer's.
        """
        return cls(parse(text))

    def to_json(self) -> str:
        """The text of `tokenizer.json`."""
        return self.backend.to_str()

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def type(self) -> str:
        """bpe, unigram or char; for a tokenizer made elsewhere perhaps the name of another method."""
        model = self.backend.model
        if isinstance(model, models.BPE) and model.byte_fallback and not json.loads(self.to_json())["model"]["merges"]:
            return "char"
        return str(model.__class__.__name__).lower()

    @property
    def special_tokens(self) -> dict[str, int]:
        """The tokens that no text is encoded to, and their ids."""
        added = self.backend.get_added_tokens_decoder()
        return {token.content: number for number, token in sorted(added.items()) if token.special}

    @property
    def fingerprint(self) -> str:
        """Digest of everything that decides which ids a text gets."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, on all cores."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_iterable(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """The ids of each text of an iterable of any length, encoded on all cores, BATCH_CHARACTERS at a time."""
        batch: list[str] = []
        characters = 0
        for text in texts:
            batch.append(text)
            characters += len(text)
            if characters >= BATCH_CHARACTERS:
                yield from self.encode_batch(batch)
                batch, characters = [], 0
        yield from self.encode_batch(batch)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids. Bytes that are not whole characters come out as U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=False)

    def token(self, token_id: int) -> str:
        """A token as it stands in the vocabulary; empty for an id that has none: a model may have more ids."""
        return self.backend.id_to_token(token_id) or ""

    def decode_batch(self, batch: Sequence[Sequence[int]]) -> list[str]:
        """The text of each list of ids, on all cores."""
        return self.backend.decode_batch([list(ids) for ids in batch], skip_special_tokens=False)
