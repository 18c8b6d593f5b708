"""Ids to text as they come, one at a time."""

import re
from collections.abc import Sequence

from lit_lm.tokenizer.tokenizer import Tokenizer

BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
"""A token that stands for a byte of a character which has no token of its own."""


class Detokenizer:
    """Decodes ids as they come, and returns text only when no later id can change it.

    So a character whose bytes are spread over several tokens comes out whole, and what `feed` and `finish` return
    together is `Tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int] = ()) -> None:
        """
        Args:
            tokenizer: The tokenizer of the ids.
            after: Ids before the first, such as a prompt's. Their text is not returned, but some tokenizers drop the
                space before a first word.
        """
        self._tokenizer = tokenizer
        self._context = list(after)
        self._context_text = tokenizer.decode(self._context)
        self._pending: list[int] = []

    def feed(self, token_id: int) -> str:
        """The text that has become certain with this id, often none."""
        self._pending.append(token_id)
        token = self._tokenizer.token(token_id)
        if not token or BYTE_TOKEN.fullmatch(token):  # a run of bytes that is ill-formed is U+FFFD from its beginning
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
