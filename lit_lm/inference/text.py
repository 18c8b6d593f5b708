"""Generate text from prompts, whole or as a stream."""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_lm.inference.batch import StoppingCriterion
from lit_lm.inference.continuation import Continuation, Ended, Token
from lit_lm.inference.engine import Engine
from lit_lm.inference.generate import generate, stream
from lit_lm.inference.sampling import SamplingConfig
from lit_lm.tokenizer.detokenizer import Detokenizer
from lit_lm.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Piece:
    """Whole characters and the tokens that encode them: one token, unless a character takes several.

    At the end, the text is empty if the last tokens have none.
    """

    text: str
    tokens: tuple[Token, ...]

    @property
    def probability(self) -> float:
        """Joint probability of the tokens."""
        return math.exp(sum(token.log_probability for token in self.tokens))


@dataclass
class Text:
    """A continuation, as far as it has been generated."""

    prompt: str
    seed: int
    pieces: list[Piece] = field(default_factory=list)
    ended: Ended | None = None
    """Why the continuation ended; None if it has not ended or was interrupted."""

    def __str__(self) -> str:
        return self.prompt + self.continuation

    @property
    def continuation(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def tokens(self) -> list[Token]:
        return [token for piece in self.pieces for token in piece.tokens]

    def row(self, sample: int) -> dict[str, Any]:
        """Return the fields of a JSON line: `continuation`, `seed`, `sample` (index, from 0), `ended` (end: end-of-text
        token; stop: stop string or token; max_new_tokens; context: context full), `num_tokens`, `log_probability`
        (natural logarithm, of all tokens together, at temperature 1).
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
    """Passes pieces on until a stop string occurs, each as soon as no stop string can begin in it."""

    def __init__(self, stop: Sequence[str]) -> None:
        self.stop = stop
        self.found = False
        """Whether a stop string has occurred; no more pieces are needed then."""
        self._held: list[Piece] = []

    def feed(self, piece: Piece) -> list[Piece]:
        """Add a piece; return the pieces that are now certain, cut at the first stop string if there is one."""
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
        """Return the pieces held back, when no more pieces will follow."""
        held, self._held = self._held, []
        return held


class Pieces:
    """Turns the tokens of a continuation into pieces, up to a stop string."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self._detokenizer = Detokenizer(tokenizer, after=prompt)
        self._filter = StopFilter(stop)
        self._tokens: list[Token] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop string has occurred."""
        return self._filter.found

    def feed(self, token: Token) -> list[Piece]:
        """Add a token; return the pieces that are now certain."""
        self._tokens.append(token)
        return self._passed(self._detokenizer.feed(token.id))

    def finish(self) -> list[Piece]:
        """Return the remaining pieces, when no more tokens will follow."""
        passed = self._passed(self._detokenizer.finish())
        if self.stopped:
            return passed
        rest, self._tokens = tuple(self._tokens), []
        return [*passed, *self.held(), *([Piece("", rest)] if rest else [])]

    def held(self) -> list[Piece]:
        """Return the pieces that were held back because a stop string could begin in them."""
        return self._filter.flush()

    def _passed(self, characters: str) -> list[Piece]:
        if not characters:
            return []
        piece, self._tokens = Piece(characters, tuple(self._tokens)), []
        return self._filter.feed(piece)


class TextGenerator:
    """Continues prompts with a model and its tokenizer."""

    def __init__(self, tokenizer: Tokenizer, engine: Engine) -> None:
        self.tokenizer, self.engine = tokenizer, engine

    def stream(
        self, text: Text, sampling: SamplingConfig, *, stop: Sequence[str] = (), num_alternatives: int = 0
    ) -> Generator[Piece, None, None]:
        """Continue `text`, and yield each piece as it is generated.

        Closing the generator, or an exception in it such as KeyboardInterrupt, interrupts the text. Pieces held
        back because a stop string could have begun in them are then added to it without being yielded.

        Args:
            text: Prompt and seed; the pieces are added to it.
            sampling: Sampling controls.
            stop: Stop strings; the text ends before the first one.
            num_alternatives: Number of likeliest tokens to include with each token.

        Raises:
            ValueError: as for `lit_lm.inference.generate.stream`.
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
        """Return all `sampling.num_samples` continuations; the first is the one that `stream` yields.

        Raises:
            ValueError: as for `lit_lm.inference.generate.generate`.
        """
        ids = encode_prompt(self.tokenizer, prompt)
        return self.continue_ids(ids, sampling, seed=seed, stop=stop, prompt=prompt)

    def continue_ids(
        self, ids: Sequence[int], sampling: SamplingConfig, *, seed: int, stop: Sequence[str] = (), prompt: str = ""
    ) -> list[Text]:
        """As `generate`, for a prompt of token ids; `prompt` is its text.

        Raises:
            ValueError: as for `lit_lm.inference.generate.generate`.
        """
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
    """Return the prompt's ids; for an empty prompt, the end-of-text token, after which a text begins.

    Raises:
        ValueError: if the prompt has bytes that are not UTF-8.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the prompt is not UTF-8 at character {error.start + 1}") from None
    return tokenizer.encode(prompt) or [tokenizer.end_id]


def whole_text(
    tokenizer: Tokenizer, prompt: str, ids: Sequence[int], seed: int, continuation: Continuation, stop: Sequence[str]
) -> Text:
    """Return the text of a continuation, as `TextGenerator.stream` makes it; `ids` are the prompt's."""
    text = Text(prompt, seed)
    for _ in _add_pieces(text, tokenizer, ids, _tokens(continuation), stop):
        pass
    return text


def stop_string_criterion(
    tokenizer: Tokenizer, stop: Sequence[str]
) -> Callable[[Sequence[int]], StoppingCriterion] | None:
    """Return the `criterion` for `generate` that ends a continuation once its text contains a stop string."""
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
    """Turn tokens into pieces up to a stop string; add each piece to the text and yield it."""
    pieces, ready = Pieces(tokenizer, prompt, stop), deque[Piece]()

    def passed() -> Iterator[Piece]:
        while ready:
            text.pieces.append(ready.popleft())
            yield text.pieces[-1]

    try:
        while not pieces.stopped:
            try:
                token = next(tokens)
            except StopIteration as stopped:
                ready.extend(pieces.finish())
                text.ended = "stop" if pieces.stopped else stopped.value
                yield from passed()
                return
            ready.extend(pieces.feed(token))
            yield from passed()
        text.ended = "stop"
    finally:  # after an interruption, some are left
        text.pieces += [*ready, *pieces.held()]


def _begun(text: str, stop: str) -> int:
    """Return the length of the longest beginning of `stop` that `text` ends with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)


def _cut(pieces: Sequence[Piece], size: int) -> Iterator[Piece]:
    """Yield the first `size` characters."""
    for piece in pieces:
        if size > 0:
            yield Piece(piece.text[:size], piece.tokens)
        size -= len(piece.text)
