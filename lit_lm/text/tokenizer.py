"""Byte-level BPE on the library `tokenizers`: train on a stream, save and load `tokenizer.json`, encode, decode.

Every byte is in the vocabulary, so any Unicode text round-trips exactly and nothing is ever unknown. The one special
token is END_OF_TEXT; a text that contains its letters is encoded as those letters, never as the special token.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
"""A token that stands for a byte of a character which has no token of its own."""
MIN_VOCAB_SIZE = 257
"""256 bytes and END_OF_TEXT."""


class Tokenizer:
    """Text to token ids and back."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Wrap a tokenizer of the library.

        Raises:
            ValueError: if it has no END_OF_TEXT token.
        """
        end_id = backend.token_to_id(END_OF_TEXT)
        if end_id is None:
            raise ValueError(f"the tokenizer has no token {END_OF_TEXT}, which is needed to separate documents")
        backend.encode_special_tokens = True  # text is text: the letters of a special token are not that token
        self.backend = backend
        self.end_id: int = end_id

    @classmethod
    def train(cls, documents: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn a vocabulary of at most `vocab_size` tokens; fewer if the text has no more pairs to merge.

        Documents are read once, as a stream: memory grows with the number of distinct words, not with the corpus.

        Raises:
            ValueError: if vocab_size is below MIN_VOCAB_SIZE.
        """
        if vocab_size < MIN_VOCAB_SIZE:
            raise ValueError(
                f"vocab_size is {vocab_size}; a byte-level tokenizer needs at least {MIN_VOCAB_SIZE}: "
                f"256 bytes and {END_OF_TEXT}"
            )
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(documents, trainer)
        return cls(backend)

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read a `tokenizer.json`.

        Raises:
            FileNotFoundError: if there is none at `path`.
            ValueError: if it cannot be read as one, or has no END_OF_TEXT.
        """
        if not path.is_file():
            raise FileNotFoundError(f"there is no tokenizer at {path}; give the path of a tokenizer.json")
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} cannot be used as a tokenizer: {error}") from None

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """The tokenizer that `to_json` wrote.

        Raises:
            ValueError: if the text is not a tokenizer's, or has no END_OF_TEXT.
        """
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing more precise
            raise ValueError(f"not the text of a tokenizer.json ({error})") from None
        return cls(backend)

    def to_json(self) -> str:
        """The text of `tokenizer.json`."""
        return self.backend.to_str()

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

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

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids. Bytes that are not whole characters come out as U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=False)

    def token(self, token_id: int) -> str:
        """A token as it stands in the vocabulary; empty for an id that has none: a model may have more ids."""
        return self.backend.id_to_token(token_id) or ""

    def decode_batch(self, batch: Sequence[Sequence[int]]) -> list[str]:
        """The text of each list of ids, on all cores."""
        return self.backend.decode_batch([list(ids) for ids in batch], skip_special_tokens=False)


class StreamDecoder:
    """Decodes ids as they come, and gives text out only when no later id can change it.

    So a character whose bytes are spread over several tokens comes out whole, and what `feed` and `finish` give makes
    up `Tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int] = ()) -> None:
        """
        Args:
            tokenizer: Whose ids these are.
            after: Ids that stand before them, such as a prompt's. Their text is not given out, but some tokenizers
                drop the space before a first word.
        """
        self._tokenizer = tokenizer
        self._context = list(after)
        self._context_text = tokenizer.decode(self._context)
        self._pending: list[int] = []

    def feed(self, token_id: int) -> str:
        """The text that has become certain with this id, often none."""
        self._pending.append(token_id)
        if BYTE_TOKEN.fullmatch(self._tokenizer.token(token_id)):  # an ill-formed run of these spoils all of it
            return ""
        text = self._decoded()
        if text.endswith("\ufffd"):
            return ""
        self._context, self._pending = self._pending, []
        self._context_text = self._tokenizer.decode(self._context)
        return text

    def finish(self) -> str:
        """The text of what was held back, with U+FFFD for bytes that never became a character."""
        text = self._decoded()
        self._pending = []
        return text

    def _decoded(self) -> str:
        return self._tokenizer.decode(self._context + self._pending)[len(self._context_text) :]
