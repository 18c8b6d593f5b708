"""Incremental decoding of token ids."""

import re
from collections.abc import Sequence

from lit_lm.tokenizer.tokenizer import Tokenizer

BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
"""Token for a byte of a character that has no token of its own."""


class Detokenizer:
    """Decodes ids one at a time, and returns text only when no later id can change it.

    A character whose bytes are spread over several tokens is returned whole. The texts that `feed` and `finish` return
    join to `Tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int] = ()) -> None:
        """
        Args:
            tokenizer: Tokenizer of the ids.
            after: Ids before the first one, such as a prompt's. Their text is not returned; without them, some
                tokenizers drop the space before the first word.
        """
        self._tokenizer = tokenizer
        self._context = list(after)
        self._context_text = tokenizer.decode(self._context)
        self._pending: list[int] = []

    def feed(self, token_id: int) -> str:
        """The text that becomes final with this id; often empty."""
        self._pending.append(token_id)
        token = self._tokenizer.token(token_id)
        if not token or BYTE_TOKEN.fullmatch(token):  # ill-formed bytes become U+FFFD from the start of their run
            return ""
        text = self._decoded()
        if text.endswith("\ufffd"):
            return ""
        self._context, self._pending = self._pending, []
        self._context_text = self._tokenizer.decode(self._context)
        return text

    def finish(self) -> str:
        """The remaining text, with U+FFFD for bytes that do not form a character."""
        text = self._decoded()
        self._pending = []
        return text

    def _decoded(self) -> str:
        return self._tokenizer.decode(self._context + self._pending)[len(self._context_text) :]
