"""From a prompt to text as it is generated."""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_lm.inference.continuation import Continuation, Ended, Token
from lit_lm.inference.engine import Engine
from lit_lm.inference.generate import StoppingCriterion, generate, stream
from lit_lm.inference.sampling import SamplingConfig
from lit_lm.tokenizer.detokenizer import Detokenizer
from lit_lm.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Piece:
    """Some whole characters, and the tokens that made them: one, unless a character takes several."""

    text: str
    tokens: tuple[Token, ...]

    @property
    def probability(self) -> float:
        """Probability of these tokens, one after the other."""
        return math.exp(sum(token.log_probability for token in self.tokens))


@dataclass
class Text:
    """A continuation as far as it has been generated."""

    prompt: str
    seed: int
    pieces: list[Piece] = field(default_factory=list)
    ended: Ended | None = None
    """Why it ended; None while it has not, or if it was interrupted."""

    @property
    def continuation(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def tokens(self) -> list[Token]:
        return [token for piece in self.pieces for token in piece.tokens]

    def row(self, sample: int) -> dict[str, Any]:
        """What programs read: `continuation`, `seed`, `sample` (its number, from 0), `ended` (end: with the text; stop:
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


class StopFilter:
    """Passes pieces on until a stop string, each as soon as no stop string can begin in it."""

    def __init__(self, stop: Sequence[str]) -> None:
        self.stop = stop
        self.found = False
        """Whether a stop string has come: then no more pieces are wanted."""
        self._held: list[Piece] = []

    def feed(self, piece: Piece) -> list[Piece]:
        """The pieces that are certain with this one; up to the first stop string, if there is one now."""
        self._held.append(piece)
        tail = "".join(piece.text for piece in self._held)
        if positions := [position for string in self.stop if (position := tail.find(string)) >= 0]:
            self.found = True
            kept, self._held = list(_cut(self._held, min(positions))), []
            return kept
        certain = len(tail) - max((_begun(tail, string) for string in self.stop), default=0)
        passed = []
        while self._held and len(self._held[0].text) <= certain:
            certain -= len(self._held[0].text)
            passed.append(self._held.pop(0))
        return passed

    def flush(self) -> list[Piece]:
        """What is held back, now that nothing more will come."""
        held, self._held = self._held, []
        return held


class TextGenerator:
    """Continues prompts with a model and its tokenizer."""

    def __init__(self, tokenizer: Tokenizer, engine: Engine) -> None:
        self.tokenizer, self.engine = tokenizer, engine

    def stream(
        self, text: Text, sampling: SamplingConfig, *, stop: Sequence[str] = (), num_alternatives: int = 0
    ) -> Generator[Piece, None, None]:
        """Continue `text`, and yield each piece as it is generated.

        Closing the generator, or an exception in it such as Ctrl-C's, interrupts the text: then its last pieces may be
        some that were held back, as a stop string could have begun in them, and were not yielded.

        Args:
            text: With a prompt and a seed; gets the pieces.
            sampling: How tokens are chosen.
            stop: Strings that end the text where the first of them begins.
            num_alternatives: Number of likeliest tokens to give with each token.

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
        yield from _add_pieces(text, self.tokenizer, ids, tokens, stop)

    def generate(self, prompt: str, sampling: SamplingConfig, *, seed: int, stop: Sequence[str] = ()) -> list[Text]:
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
            criterion=stop_string_criterion(self.tokenizer, stop),
        )
        return [whole_text(self.tokenizer, prompt, ids, seed, continuation, stop) for continuation in continuations]


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The prompt's ids; an empty prompt is the start of a text.

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
    """The text of a continuation of ids, the prompt's, as `TextGenerator.stream` makes it of the same tokens."""
    text = Text(prompt, seed)
    for _ in _add_pieces(text, tokenizer, ids, _tokens(continuation), stop):
        pass
    return text


def stop_string_criterion(
    tokenizer: Tokenizer, stop: Sequence[str]
) -> Callable[[Sequence[int]], StoppingCriterion] | None:
    """For `generate`: ends a continuation of a prompt once its text has a stop string."""
    longest = max(map(len, stop), default=0)

    def criterion(prompt: Sequence[int]) -> StoppingCriterion:
        detokenizer, tail = Detokenizer(tokenizer, after=prompt), ""

        def ends(token_id: int) -> bool:
            nonlocal tail
            text = tail + detokenizer.feed(token_id)
            tail = text[-longest:]
            return any(string in text for string in stop)

        return ends

    return criterion if stop else None


def _tokens(continuation: Continuation) -> Generator[Token, None, Ended]:
    for token_id, log_probability in zip(continuation.ids, continuation.log_probabilities, strict=True):
        yield Token(token_id, log_probability)
    return continuation.ended


def _add_pieces(
    text: Text, tokenizer: Tokenizer, prompt: Sequence[int], tokens: Generator[Token, None, Ended], stop: Sequence[str]
) -> Iterator[Piece]:
    """Turn tokens into pieces, up to a stop string; add each to the text, and yield it."""
    stop_filter, ready = StopFilter(stop), deque[Piece]()

    def passed() -> Iterator[Piece]:
        while ready:
            text.pieces.append(ready.popleft())
            yield text.pieces[-1]

    try:
        for piece in _pieces(text, tokenizer, prompt, tokens):
            ready.extend(stop_filter.feed(piece))
            yield from passed()
            if stop_filter.found:
                text.ended = "stop"
                return
        ready.extend(stop_filter.flush())
        yield from passed()
    finally:  # an interruption leaves some
        text.pieces += [*ready, *stop_filter.flush()]


def _pieces(
    text: Text, tokenizer: Tokenizer, prompt: Sequence[int], tokens: Generator[Token, None, Ended]
) -> Iterator[Piece]:
    """Tokens as pieces; when there are no more, the text has ended for the same reason."""
    detokenizer = Detokenizer(tokenizer, after=prompt)
    held: list[Token] = []
    while True:
        try:
            token = next(tokens)
        except StopIteration as stopped:
            text.ended = stopped.value
            break
        held.append(token)
        if characters := detokenizer.feed(token.id):
            yield Piece(characters, tuple(held))
            held = []
    if characters := detokenizer.finish():
        yield Piece(characters, tuple(held))


def _begun(text: str, stop: str) -> int:
    """Number of characters of `stop` that `text` ends with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)


def _cut(pieces: Sequence[Piece], size: int) -> Iterator[Piece]:
    """The first `size` characters."""
    for piece in pieces:
        if size > 0:
            yield Piece(piece.text[:size], piece.tokens)
        size -= len(piece.text)
