"""Output of generated text: plain, colored by probability, or one line per token with its alternatives."""

import json
import math
import os
import re
from collections.abc import Generator
from itertools import chain, islice
from typing import Any, TextIO

from lit_lm.inference.continuation import Token
from lit_lm.inference.text import Piece, Text
from lit_lm.tokenizer.tokenizer import Tokenizer

COLORS = ((0.7, 32), (0.3, 36), (0.1, 33), (0.0, 31))
"""Minimum probability of a token for each ANSI color: green, cyan, yellow, red."""

LEGEND = "at least 0.7: green, 0.3: cyan, 0.1: yellow, less: red"

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters that a terminal would interpret, other than tabs and newlines."""


class Display:
    """Writes pieces of text as they are generated."""

    def __init__(
        self, out: TextIO, tokenizer: Tokenizer, *, probabilities: bool = False, alternatives: int = 0
    ) -> None:
        """
        Args:
            out: Output stream. Notes and colors need a terminal; colors also need NO_COLOR unset (no-color.org).
            tokenizer: Decodes the alternatives.
            probabilities: Whether to color tokens by their probability.
            alternatives: Number of most likely tokens to list for each token, one line per token; 0: plain text.
        """
        self.out, self.tokenizer = out, tokenizer
        self.is_terminal = out.isatty()
        self.colors = self.is_terminal and not os.environ.get("NO_COLOR")
        self.probabilities, self.alternatives = probabilities, alternatives

    def show(self, text: Text, pieces: Generator[Piece, None, None] | None = None) -> None:
        """Write the prompt and the pieces of a text.

        With `pieces`, write each piece as it is generated. After an interruption, the pieces generated so far are
        written. If generating the first piece fails, nothing is.
        """
        first = [] if pieces is None else list(islice(pieces, 1))
        self._write(f"{json.dumps(text.prompt, ensure_ascii=False)}\n" if self.alternatives else text.prompt, code=1)
        shown = 0
        try:
            for piece in text.pieces if pieces is None else chain(first, pieces):
                shown += 1
                self._piece(piece)
        finally:  # also on Ctrl-C
            if pieces is not None:
                pieces.close()
            for piece in text.pieces[shown:]:
                self._piece(piece)
            if not self.alternatives:
                self._write("\n")

    def note(self, text: str) -> None:
        """Write a note, only on a terminal."""
        if self.is_terminal:
            self._write(f"({text})\n", code=2)

    def legend(self) -> None:
        """Write the meaning of the colors, if any are used."""
        if self.probabilities and self.colors and not self.alternatives:
            self.note(LEGEND)

    def _piece(self, piece: Piece) -> None:
        if self.alternatives:
            self._write("".join(f"{self._line(token)}\n" for token in piece.tokens))
        else:
            self._write(piece.text, self._color(piece.probability) if self.probabilities else None)

    def _line(self, token: Token) -> str:
        shown = [(token.id, token.log_probability), *token.alternatives[: self.alternatives]]
        cells = [f"{self._quoted(token_id):14} {math.exp(value):.3f}" for token_id, value in shown]
        return f"{cells[0]}  |  {'  '.join(cells[1:])}".rstrip()

    def _quoted(self, token_id: int) -> str:
        return json.dumps(self.tokenizer.decode([token_id]), ensure_ascii=False)

    def _color(self, probability: float) -> int:
        return next(code for least, code in COLORS if probability >= least)

    def _write(self, text: str, code: int | None = None) -> None:
        if self.is_terminal:
            text = CONTROL.sub("\ufffd", text)
        self.out.write(f"\x1b[{code}m{text}\x1b[0m" if self.colors and code is not None else text)
        self.out.flush()


def as_json(text: Text, tokenizer: Tokenizer, *, sample: int = 0, tokens: bool = False) -> str:
    """A text as a JSON object on one line: `prompt` and the fields of `Text.row`. With `tokens`, also a list of tokens:
    `id`, `text`, `log_probability` and `alternatives` (tokens with the first three fields).
    """
    row: dict[str, Any] = {"prompt": text.prompt, **text.row(sample)}
    if tokens:
        row["tokens"] = [
            _token(tokenizer, token.id, token.log_probability)
            | {"alternatives": [_token(tokenizer, *alternative) for alternative in token.alternatives]}
            for token in text.tokens
        ]
    return json.dumps(row, ensure_ascii=False)


def _token(tokenizer: Tokenizer, token_id: int, log_probability: float) -> dict[str, Any]:
    return {"id": token_id, "text": tokenizer.decode([token_id]), "log_probability": log_probability}
