"""Text to token ids and back, with any tokenizer of the library `tokenizers`.

A text that contains the name of a special token is encoded as ordinary characters, never as that token.
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
"""Names of the end-of-text token, in tokenizers made here and elsewhere."""
BATCH_CHARACTERS = 2**20


class Tokenizer:
    """Text to token ids and back."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Wrap a tokenizer of the library, wherever it was made.

        Truncation, padding and dropout, which may be saved in it, are switched off: text keeps all its tokens, and the
        same text has the same. The end token is the first of END_TOKENS that no text is encoded to; if there is none,
        END_OF_TEXT is added.

        Raises:
            ValueError: if it has no tokens, or no end token that no text is encoded to.
        """
        if not backend.get_vocab_size():
            raise ValueError("it has no tokens")
        backend.no_truncation()
        backend.no_padding()
        if isinstance(backend.model, models.BPE):
            backend.model.dropout = None
        backend.encode_special_tokens = True  # the name of a special token in a text is text
        known = [name for name in END_TOKENS if backend.token_to_id(name) is not None]
        unreachable = [name for name in known if backend.token_to_id(name) not in _encode(backend, name)]
        if END_OF_TEXT in known and not unreachable:
            raise ValueError(f"it encodes text to {END_OF_TEXT}, which must only end documents")
        self.end_token = unreachable[0] if unreachable else END_OF_TEXT
        backend.add_special_tokens([self.end_token])
        self.backend = backend
        self.end_id: int = backend.get_vocab()[self.end_token]

    @classmethod
    def train(cls, documents: Iterable[str], vocab_size: int, tokenizer_type: TokenizerType = "bpe") -> "Tokenizer":
        """Train a tokenizer of `vocab_size` tokens on a stream of documents, as in `lit_lm.tokenizer.train`.

        Raises:
            ValueError: if the type is unknown, or vocab_size is too small for it.
        """
        return cls(train(documents, vocab_size, tokenizer_type))

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Load a tokenizer in one of the formats of `lit_lm.tokenizer.formats`.

        Raises:
            FileNotFoundError: if there is none at `path`.
            ValueError: if it cannot be loaded.
        """
        path = Path(path)
        backend = read(path)
        try:
            return cls(backend)
        except ValueError as error:
            raise ValueError(f"{path} cannot be used as a tokenizer: {error}") from None

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """Load the output of `to_json`.

        Raises:
            ValueError: if the text is invalid.
        """
        return cls(parse(text))

    def to_json(self) -> str:
        """The text of a tokenizer.json."""
        return self.backend.to_str()

    @property
    def vocab_size(self) -> int:
        """Number of ids, including special tokens."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def type(self) -> str:
        """bpe, unigram or char; for tokenizers made elsewhere, possibly another method."""
        model = self.backend.model
        if isinstance(model, models.BPE) and model.byte_fallback and not json.loads(self.to_json())["model"]["merges"]:
            return "char"
        return str(model.__class__.__name__).lower()

    @property
    def special_tokens(self) -> dict[str, int]:
        """Special tokens, to which no text is encoded, and their ids."""
        added = self.backend.get_added_tokens_decoder()
        return {token.content: number for number, token in sorted(added.items()) if token.special}

    @property
    def fingerprint(self) -> str:
        """Digest of everything that determines the ids of a text."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return _encode(self.backend, text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, encoded on all cores."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_iterable(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """Ids of each text of an iterable of any length, encoded on all cores, BATCH_CHARACTERS at a time."""
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
        """Text of ids. Bytes that do not form a character become U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=False)

    def token(self, token_id: int) -> str:
        """A token as written in the vocabulary; empty for an id beyond it, since a model may have more ids."""
        return self.backend.id_to_token(token_id) or ""

    def decode_batch(self, batch: Sequence[Sequence[int]]) -> list[str]:
        """Text of each list of ids, decoded on all cores."""
        return self.backend.decode_batch([list(ids) for ids in batch], skip_special_tokens=False)


def _encode(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    return backend.encode(text, add_special_tokens=False).ids
