"""Incremental decoding of token ids."""

import re
from collections.abc import Sequence

from lit_lm.tokenizer.tokenizer import Tokenizer

BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
"""Token for a byte of a character that has no token of its own."""
MAX_BYTES = 4
"""Maximum number of bytes of a character in UTF-8, and so of tokens."""


class Detokenizer:
    """Decodes ids one at a time, and returns text only when no later id can change it.

    A character whose bytes are spread over several tokens is returned whole. The texts that `feed` and `finish` return
    join to `Tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int] = ()) -> None:
        """
        Args:
            tokenizer: Tokenizer of the ids.
            after: Ids before the first one, such as a prompt's. Their text is not returned, except for a character
                that ends after them; without them, some tokenizers drop the space before the first word.
        """
        self._tokenizer = tokenizer
        start = len(after)
        while start and self._is_part(after[start - 1]):
            start -= 1
        start = max(0, start - MAX_BYTES)
        self._context, self._pending = list(after[:start]), list[int]()
        self._context_text = tokenizer.decode(self._context)
        self._known = ""
        """Text of those pending ids that are from `after`; it is not returned."""
        for token_id in after[start:]:
            self.feed(token_id)
        self._known = self._decoded()

    def feed(self, token_id: int) -> str:
        """The text that becomes final with this id; often empty."""
        self._pending.append(token_id)
        if self._is_part(token_id) or (text := self._decoded()).endswith("\ufffd"):
            return ""
        self._context, self._pending = self._pending, []
        self._context_text = self._tokenizer.decode(self._context)
        return self._new(text)

    def finish(self) -> str:
        """The remaining text, with U+FFFD for bytes that do not form a character."""
        text = self._decoded()
        self._pending = []
        return self._new(text)

    def _is_part(self, token_id: int) -> bool:
        """Whether the token has no text of its own yet: it is unknown, or a byte, which may turn those before it into
        U+FFFD.
        """
        token = self._tokenizer.token(token_id)
        return not token or BYTE_TOKEN.fullmatch(token) is not None

    def _new(self, text: str) -> str:
        known, self._known = self._known, ""
        pairs = enumerate(zip(text, known, strict=False))
        return text[next((place for place, (mine, theirs) in pairs if mine != theirs), len(known)) :]

    def _decoded(self) -> str:
        return self._tokenizer.decode(self._context + self._pending)[len(self._context_text) :]
