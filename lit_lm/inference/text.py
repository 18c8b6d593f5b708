"""From a prompt to text as it is made: what a model and its tokenizer say together."""

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_lm.inference.continuation import Continuation, Ended
from lit_lm.inference.engine import Engine
from lit_lm.inference.generate import Token, Watch, generate, stream
from lit_lm.inference.sampling import Sampling
from lit_lm.tokenizer.tokenizer import StreamDecoder, Tokenizer


@dataclass(frozen=True)
class Piece:
    """Some whole characters, and the tokens that made them: one, unless a character has several."""

    text: str
    tokens: tuple[Token, ...]

    @property
    def probability(self) -> float:
        """Of these tokens one after the other."""
        return math.exp(sum(token.log_probability for token in self.tokens))


@dataclass
class Text:
    """A continuation as far as it is made."""

    prompt: str
    seed: int
    pieces: list[Piece] = field(default_factory=list)
    ended: Ended | None = None
    """Why it ended; None while it has not, or if it was broken off."""
    held: list[Piece] = field(default_factory=list)
    """Pieces at the end that are not given out yet, as a stop string may begin in them."""

    @property
    def continuation(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def tokens(self) -> list[Token]:
        return [token for piece in self.pieces for token in piece.tokens]

    def row(self, sample: int) -> dict[str, Any]:
        """What programs read: `continuation`, `seed`, `sample` (its number, from 0), `ended` (end: the text did; stop:
        at a stop string or token; max_new_tokens; context: it is full), `num_tokens`, `log_probability` (natural, of
        all tokens together, at temperature 1).
        """
        return {
            "continuation": self.continuation,
            "seed": self.seed,
            "sample": sample,
            "ended": self.ended,
            "num_tokens": len(self.tokens),
            "log_probability": sum(token.log_probability for token in self.tokens),
        }


class TextGenerator:
    """Continues prompts with a model and its tokenizer."""

    def __init__(self, tokenizer: Tokenizer, engine: Engine) -> None:
        self.tokenizer, self.engine = tokenizer, engine

    def stream(
        self, text: Text, sampling: Sampling, *, stop: Sequence[str] = (), num_alternatives: int = 0
    ) -> Generator[Piece, None, None]:
        """Continue `text`, and give each piece out as it is made.

        Closing the generator, or an exception in it such as Ctrl-C's, breaks the text off: then the text's last pieces
        may be some that waited for a stop string to become complete, and were not given out.

        Args:
            text: With a prompt and a seed; gets the pieces.
            sampling: How tokens are chosen.
            stop: Strings that end the text where the first of them begins.
            num_alternatives: The likeliest tokens to name with each token.

        Raises:
            ValueError: as `lit_lm.inference.generate.stream`.
        """
        ids = encode_prompt(self.tokenizer, text.prompt)
        tokens = stream(
            self.engine,
            ids,
            sampling,
            seed=text.seed,
            end_id=self.tokenizer.end_id,
            num_alternatives=min(num_alternatives, self.engine.config.vocab_size),
        )
        try:
            for piece in until_stop(_pieces(self.tokenizer, tokens, ids, text), text, stop):
                text.pieces.append(piece)
                yield piece
        finally:
            text.pieces += text.held
            text.held = []

    def generate(self, prompt: str, sampling: Sampling, *, seed: int, stop: Sequence[str] = ()) -> list[Text]:
        """All `sampling.num_samples` continuations at once, as `stream` gives the first.

        Raises:
            ValueError: as `lit_lm.inference.generate.generate`.
        """
        ids = encode_prompt(self.tokenizer, prompt)
        (continuations,) = generate(
            self.engine,
            [ids],
            sampling,
            seeds=[seed],
            end_id=self.tokenizer.end_id,
            watch=stop_watch(self.tokenizer, stop),
        )
        return [whole_text(self.tokenizer, prompt, ids, seed, continuation, stop) for continuation in continuations]


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The prompt's ids; an empty prompt is where a text begins.

    Raises:
        ValueError: if it is not text: has bytes that are not UTF-8.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the prompt is not UTF-8: see its character {error.start + 1}") from None
    return tokenizer.encode(prompt) or [tokenizer.end_id]


def whole_text(
    tokenizer: Tokenizer, prompt: str, ids: Sequence[int], seed: int, continuation: Continuation, stop: Sequence[str]
) -> Text:
    """The text of a continuation of ids, the prompt's: what `TextGenerator.stream` would have made of its tokens."""
    text = Text(prompt, seed)
    text.pieces = list(until_stop(_pieces(tokenizer, _tokens(continuation), ids, text), text, stop))
    return text


def stop_watch(tokenizer: Tokenizer, stop: Sequence[str]) -> Callable[[Sequence[int]], Watch] | None:
    """For `generate`: ends a continuation of a prompt's ids once its text has a stop string."""

    longest = max(map(len, stop), default=0)

    def watch(prompt: Sequence[int]) -> Watch:
        decoder, tail = StreamDecoder(tokenizer, after=prompt), ""

        def ends(token_id: int) -> bool:
            nonlocal tail
            text = tail + decoder.feed(token_id)
            tail = text[-longest:]
            return any(string in text for string in stop)

        return ends

    return watch if stop else None


def _tokens(continuation: Continuation) -> Generator[Token, None, Ended]:
    for token_id, log_probability in zip(continuation.ids, continuation.log_probabilities, strict=True):
        yield Token(token_id, log_probability)
    return continuation.ended


def _pieces(
    tokenizer: Tokenizer, tokens: Generator[Token, None, Ended], prompt: Sequence[int], text: Text
) -> Generator[Piece, None, None]:
    """Tokens as pieces of text, which ends for the reason that the tokens end for."""
    decoder = StreamDecoder(tokenizer, after=prompt)
    held: list[Token] = []

    def following() -> Generator[Token, None, None]:
        text.ended = yield from tokens

    for token in following():
        held.append(token)
        if characters := decoder.feed(token.id):
            yield Piece(characters, tuple(held))
            held = []
    if characters := decoder.finish():
        yield Piece(characters, tuple(held))


def until_stop(pieces: Iterable[Piece], text: Text, stop: Sequence[str]) -> Generator[Piece, None, None]:
    """The pieces before the first stop string, each as soon as no stop string can begin in it."""
    waiting = text.held
    for piece in pieces:
        waiting.append(piece)
        tail = "".join(piece.text for piece in waiting)
        found = [position for string in stop if (position := tail.find(string)) >= 0]
        if found:
            kept = list(_cut(waiting, min(found)))
            waiting.clear()
            text.ended = "stop"
            yield from kept
            return
        certain = len(tail) - max((_begun(tail, string) for string in stop), default=0)
        while waiting and len(waiting[0].text) <= certain:
            certain -= len(waiting[0].text)
            yield waiting.pop(0)
    while waiting:
        yield waiting.pop(0)


def _begun(text: str, stop: str) -> int:
    """Characters of `stop` that `text` ends with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)


def _cut(pieces: Sequence[Piece], size: int) -> Generator[Piece, None, None]:
    """The first `size` characters."""
    for piece in pieces:
        if size > 0:
            yield Piece(piece.text[:size], piece.tokens)
        size -= len(piece.text)
