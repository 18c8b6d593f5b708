"""Pieces of text with all of their tokens."""

from lit_lm.inference.text import Piece, Pieces


class AllPieces(Pieces):
    """Pieces in which every token is found, also one without a text: clients align the tokens with their own."""

    def finish(self) -> list[Piece]:
        passed, rest = super().finish(), tuple(self._tokens)
        self._tokens = []
        return [*passed, Piece("", rest)] if rest and not self.stopped else passed
