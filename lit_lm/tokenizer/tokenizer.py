"""Text to token ids and back, with any tokenizer of the libraries `tokenizers` and `sentencepiece`.

A text that contains the name of a special token is encoded as ordinary characters, never as that token. Only tokens
that the user adds when the tokenizer is trained (`special_tokens`) are encoded by their names, wherever these occur:
such a tokenizer is for text in which they are markup.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models

from lit_lm.tokenizer.formats import SENTENCEPIECE, parse, read
from lit_lm.tokenizer.train import END_OF_TEXT as END_OF_TEXT
from lit_lm.tokenizer.train import MAX_VOCAB_SIZE, TokenizerType, train

END_TOKENS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]")
"""Names of the end-of-text token, in tokenizers made here and elsewhere."""
BATCH_CHARACTERS = 2**20
CONTEXTS = ("{}", " {}", "a{}", "{}a", "a {} a", "\n{}\n", ".{}.", "{0}{0}", "\U0010ffff")
"""Contexts in which a token's name is tried, and an unknown character: if none is encoded to the token, no text is."""


class Tokenizer:
    """Text to token ids and back."""

    end_token: str
    """Name of the token that ends documents."""
    end_id: int
    """Its id."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Wrap a tokenizer of the library `tokenizers`, wherever it was made.

        Truncation, padding and random segmentation, which may be saved in it, are switched off: text keeps all its
        tokens, and the same text has the same. The end token is the first of END_TOKENS that no text is encoded to,
        special tokens before other ones; if there is none, END_OF_TEXT is added.

        Raises:
            ValueError: if it has no tokens, an id of MAX_VOCAB_SIZE or more, or no end token that is never encoded to.
        """
        if not backend.get_vocab_size():
            raise ValueError("it has no tokens")
        backend.no_truncation()
        backend.no_padding()
        _make_deterministic(backend)
        backend.encode_special_tokens = True  # the name of a special token in a text is text
        known = [name for name in END_TOKENS if backend.token_to_id(name) is not None]
        special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
        unreachable = [name for name in known if not _text_becomes(backend, name)]
        unreachable.sort(key=lambda name: name not in special)
        if END_OF_TEXT in known and not unreachable:
            raise ValueError(
                f"it encodes text to {END_OF_TEXT}, which must only end documents; make it special, or rename it"
            )
        self.end_token = unreachable[0] if unreachable else END_OF_TEXT
        backend.add_special_tokens([self.end_token])
        self.backend = backend
        ids = backend.get_vocab()
        self.end_id = ids.pop(self.end_token)
        if self.end_id in ids.values():  # the library numbers an added token by the size of the vocabulary
            raise ValueError(
                f"it has no end token, and its ids have holes, so that {self.end_token} cannot be added; "
                "add it to the vocabulary in the file"
            )
        self._size: int = max([*ids.values(), self.end_id]) + 1
        if self._size > MAX_VOCAB_SIZE:
            raise ValueError(f"its highest id is {self._size - 1:,}; it must be less than {MAX_VOCAB_SIZE:,}")

    @classmethod
    def train(
        cls,
        documents: Iterable[str],
        vocab_size: int,
        tokenizer_type: TokenizerType = "bpe",
        special_tokens: Sequence[str] = (),
    ) -> "Tokenizer":
        """Train a tokenizer of `vocab_size` tokens on a stream of documents, as in `lit_lm.tokenizer.train`.

        Raises:
            ValueError: if the type is unknown, vocab_size is too small for it, or a special token is invalid.
        """
        return cls(train(documents, vocab_size, tokenizer_type, special_tokens))

    @classmethod
    def load(cls, path: str | Path, merges: str | Path | None = None) -> "Tokenizer":
        """Load a tokenizer in one of the formats of `lit_lm.tokenizer.formats`.

        Args:
            path: File or folder.
            merges: File of merges if `path` is a vocab.json that has it elsewhere; None: beside it.

        Raises:
            FileNotFoundError: if there is none at `path`.
            ValueError: if it cannot be loaded.
        """
        path = Path(path)
        backend = read(path, None if merges is None else Path(merges))
        try:
            return cls._of(backend)
        except ValueError as error:
            raise ValueError(f"{path} cannot be used as a tokenizer: {error}") from None

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """Load the output of `to_json`.

        Raises:
            ValueError: if the text is invalid.
        """
        return cls._of(parse(text))

    @classmethod
    def _of(cls, backend: tokenizers.Tokenizer | bytes) -> "Tokenizer":
        return _SentencePiece(backend) if isinstance(backend, bytes) else cls(backend)

    def to_json(self) -> str:
        """The text of a tokenizer.json; for a SentencePiece model, a text that only `from_json` can read."""
        return self.backend.to_str()

    @property
    def vocab_size(self) -> int:
        """Highest id + 1. There may be ids without a token below it."""
        return self._size

    @property
    def type(self) -> str:
        """bpe, unigram or char; for tokenizers made elsewhere, possibly another method."""
        model = self.backend.model
        if isinstance(model, models.BPE) and model.byte_fallback and not json.loads(self.to_json())["model"]["merges"]:
            return "char"
        return str(model.__class__.__name__).lower()

    @property
    def special_tokens(self) -> dict[str, int]:
        """Tokens that are no part of words, and their ids: special ones, and those that the user has added."""
        added = self.backend.get_added_tokens_decoder()
        return {token.content: number for number, token in sorted(added.items())}

    @property
    def fingerprint(self) -> str:
        """Digest of everything that determines the ids of a text."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of a text.

        Raises:
            ValueError: if it is not valid Unicode, or has a word for which there is no token.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, encoded on all cores. Raises as `encode`."""
        try:
            return self._encode_batch(list(texts))
        except Exception as error:  # the libraries raise nothing more precise
            raise self._explained(texts, error) from None

    def _encode_batch(self, texts: list[str]) -> list[list[int]]:
        if len(texts) == 1:
            return [_encode(self.backend, texts[0])]
        return [encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _explained(self, texts: Iterable[str], error: Exception) -> Exception:
        """The error to raise for texts that the library could not encode."""
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError as surrogate:
                return ValueError(
                    f"the text is not valid Unicode: character {surrogate.start} is the lone surrogate "
                    f"U+{ord(text[surrogate.start]):04X} (in an argument of a command: a byte that is not UTF-8)"
                )
            if (word := self._word_without_token(text)) is not None:
                return ValueError(
                    f"there is no token for {word!r}, and the tokenizer has no unknown token; use one that has, or "
                    "train one on this text with `lit-lm tokenizer train`"
                )
        return error

    def _word_without_token(self, text: str) -> str | None:
        if self.backend.normalizer:
            text = self.backend.normalizer.normalize_str(text)
        pre_tokenizer = self.backend.pre_tokenizer
        for word, _ in pre_tokenizer.pre_tokenize_str(text) if pre_tokenizer else [(text, None)]:
            try:
                self.backend.model.tokenize(word)
            except Exception:  # the library raises nothing more precise
                return word
        return None

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


class _SentencePiece(Tokenizer):
    """A SentencePiece model, run by its own library."""

    def __init__(self, model: bytes) -> None:
        """Load the content of a .model file.

        The end token is the first of END_TOKENS that is a control symbol, else the model's own eos; if there is none,
        END_OF_TEXT gets the id after the last.

        Raises:
            ValueError: if it is not a SentencePiece model, or the package is missing.
        """
        try:
            library = import_module("sentencepiece")
        except ImportError:
            raise ValueError("a SentencePiece model needs the package: pip install 'lit-lm[sentencepiece]'") from None
        try:
            self._model: Any = library.SentencePieceProcessor(model_proto=model)
            num_pieces: int = self._model.vocab_size()
        except Exception as error:  # the library raises different types
            raise ValueError(f"not a SentencePiece model ({error})") from None
        if not num_pieces:
            raise ValueError("not a SentencePiece model (it has no pieces)")
        self._content = model
        self._names: list[str] = [self._model.id_to_piece(number) for number in range(num_pieces)]
        self._special = {self._names[i]: i for i in range(num_pieces) if self._model.is_control(i)}
        own = [self._names[self._model.eos_id()]] if self._model.eos_id() >= 0 else []
        self.end_token = next((name for name in (*END_TOKENS, *own) if name in self._special), END_OF_TEXT)
        if self.end_token not in self._special:
            if END_OF_TEXT in self._names:
                raise ValueError(f"its piece {END_OF_TEXT}, which must only end documents, is not a control symbol")
            self._names.append(END_OF_TEXT)
            self._special[END_OF_TEXT] = num_pieces
        self.end_id = self._special[self.end_token]

    def to_json(self) -> str:
        return json.dumps({SENTENCEPIECE: base64.b64encode(self._content).decode()})

    @property
    def vocab_size(self) -> int:
        return len(self._names)

    @property
    def type(self) -> str:
        return SENTENCEPIECE

    @property
    def special_tokens(self) -> dict[str, int]:
        return dict(self._special)

    def _encode_batch(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self._model.encode(texts)
        return ids

    def _word_without_token(self, text: str) -> str | None:
        return None  # every model has an unknown piece

    def decode(self, ids: Sequence[int]) -> str:
        special = set(self._special.values())
        known = [number for number in ids if 0 <= number < len(self._names)]
        return "".join(
            "".join(self._names[number] for number in part) if named else self._model.decode(list(part))
            for named, part in groupby(known, special.__contains__)
        )

    def decode_batch(self, batch: Sequence[Sequence[int]]) -> list[str]:
        return [self.decode(ids) for ids in batch]

    def token(self, token_id: int) -> str:
        return self._names[token_id] if 0 <= token_id < len(self._names) else ""


def _encode(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    return backend.encode(text, add_special_tokens=False).ids


def _make_deterministic(backend: tokenizers.Tokenizer) -> None:
    """Switch off the random segmentation of BPE and Unigram."""
    model = backend.model
    for name in ("dropout", "alpha", "nbest_size"):
        if getattr(model, name, None) is not None:
            setattr(model, name, None)


def _text_becomes(backend: tokenizers.Tokenizer, name: str) -> bool:
    """Whether some text is encoded to the token of this name."""
    model, number = backend.model, backend.token_to_id(name)
    looks_up_words = isinstance(model, models.WordLevel | models.WordPiece) or getattr(model, "ignore_merges", False)
    cut = backend.pre_tokenizer.pre_tokenize_str(name) if backend.pre_tokenizer else []
    if isinstance(model, models.Unigram) and len(cut) > 1:  # by `formats.parse`
        return False
    if model.token_to_id(name) is not None and not looks_up_words:
        # both BPE and Unigram find a token in a longer word only if they find it in a word of its letters alone
        return name in [token.value for token in model.tokenize(name)]
    return any(number in _encoded(backend, context.format(name)) for context in CONTEXTS)


def _encoded(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    """Ids of a text; none if it has an unknown word."""
    try:
        return _encode(backend, text)
    except Exception:  # the library raises nothing more precise
        return []
