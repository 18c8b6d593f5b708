"""From prompts to continuations: prefill, choose, step, until every row has ended."""

import random
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from lit_lm.generation.decoder import Cache, Decoder
from lit_lm.generation.sampling import Sampling, draw, narrowed, penalized
from lit_lm.model import Transformer

Ended = Literal["end", "stop", "max_new_tokens", "context"]
"""Why a continuation ended: its text did, at a stop token, as asked, or because the context is full."""


@dataclass(frozen=True)
class Continuation:
    """New ids, without the prompt and without the token that ended them; each with its log-probability.

    Log-probabilities are natural, and the model's own: before any control, at temperature 1.
    """

    ids: list[int]
    log_probabilities: list[float]
    ended: Ended


@dataclass(frozen=True)
class Token:
    """A new id with its log-probability, and the likeliest ids in its place with theirs, likeliest first."""

    id: int
    log_probability: float
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass
class _Row:
    """A continuation in the making."""

    prompt: Sequence[int]
    wanted: int
    """New tokens at most."""
    numbers: random.Random
    """The row's own source of random numbers, one for each token."""
    tokens: list[Token] = field(default_factory=list)
    ended: Ended | None = None

    @property
    def new(self) -> list[int]:
        return [token.id for token in self.tokens]


def generate(
    model: Transformer | Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    seeds: Sequence[int],
    end_id: int,
) -> list[list[Continuation]]:
    """`sampling.num_samples` continuations of each prompt.

    Prompts may differ in length. A row's random numbers come from its prompt's seed and the number of the sample
    alone, and no row sees another, so a prompt and its seed give the same ids whatever else is in the batch. The one
    exception is rounding: matrices are multiplied in another order for another number of rows, which changes logits
    in their last digits (by about 1e-6 in float32, 1e-2 in bfloat16), and with them the choice between tokens that
    are nearer than that to equal, or a random number that near to the border between two.

    Args:
        model: A Transformer, or a Decoder made of one (which saves making it again).
        prompts: Token ids.
        sampling: How tokens are chosen, and how many.
        seeds: One for each prompt.
        end_id: The id that ends a text; left out of the continuation.

    Raises:
        ValueError: if a prompt is empty or leaves no room in the context for the tokens asked for.
    """
    decoder = model if isinstance(model, Decoder) else Decoder(model)
    wanted = [_wanted(len(prompt), sampling, decoder.config.context_length) for prompt in prompts]
    if sampling.num_beams > 1:
        raise NotImplementedError
    rows = [
        _Row(prompt, count, random.Random(f"{seed}/{sample}"))
        for prompt, seed, count in zip(prompts, seeds, wanted, strict=True)
        for sample in range(sampling.num_samples)
    ]
    for _ in _lengthen(decoder, rows, sampling, end_id):
        pass
    done = [
        Continuation(row.new, [token.log_probability for token in row.tokens], row.ended or "max_new_tokens")
        for row in rows
    ]
    return [done[i : i + sampling.num_samples] for i in range(0, len(done), sampling.num_samples)]


def stream(
    model: Transformer | Decoder,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    seed: int,
    end_id: int,
    num_alternatives: int = 0,
) -> Generator[Token, None, Ended]:
    """The first continuation that `generate` gives for this prompt and seed, token by token; then why it ended.

    A token is computed when it is asked for: closing the iterator stops the work.

    Args:
        num_alternatives: The likeliest ids to name with each token.

    Raises:
        ValueError: as `generate`, at once; or if `sampling` asks for beam search, whose text is known at its end only.
    """
    decoder = model if isinstance(model, Decoder) else Decoder(model)
    if sampling.num_beams > 1:
        raise ValueError(f"num_beams is {sampling.num_beams}; beam search has no text before its end: set it to 1")
    wanted = _wanted(len(prompt), sampling, decoder.config.context_length)
    row = _Row(prompt, wanted, random.Random(f"{seed}/0"))
    return _stream(_lengthen(decoder, [row], sampling, end_id, num_alternatives), row)


def _stream(steps: Iterator[None], row: _Row) -> Generator[Token, None, Ended]:
    for _ in steps:
        if row.ended not in ("end", "stop"):
            yield row.tokens[-1]
    assert row.ended is not None
    return row.ended


def _wanted(prompt_size: int, sampling: Sampling, context_length: int) -> int:
    """The new tokens that a prompt gets at most."""
    room = context_length - prompt_size
    wanted = room if sampling.max_new_tokens is None else sampling.max_new_tokens
    if not prompt_size:
        raise ValueError("the prompt is empty; it needs at least one token")
    if not sampling.sliding_window and not 0 < wanted <= room:
        raise ValueError(
            f"a prompt of {prompt_size} tokens and {max(1, wanted)} new ones do not fit into "
            f"the context of {context_length}; the prompt leaves room for {max(0, room)}"
        )
    return wanted


def _lengthen(
    decoder: Decoder, rows: list[_Row], sampling: Sampling, end_id: int, num_alternatives: int = 0
) -> Iterator[None]:
    """Give every row that has not ended one more token, or its end, at each turn."""
    cache = decoder.new_cache(len(rows))
    logits = torch.stack([decoder.prefill(_window(row, cache), cache, i) for i, row in enumerate(rows)])
    while True:
        _add_tokens(logits, rows, sampling, end_id, num_alternatives)
        yield
        kept = [i for i, row in enumerate(rows) if row.ended is None]
        if not kept:
            return
        if len(kept) < len(rows):
            cache.keep(kept)
            rows = [rows[i] for i in kept]
        logits = _step(decoder, rows, cache)


def _add_tokens(logits: Tensor, rows: list[_Row], sampling: Sampling, end_id: int, num_alternatives: int) -> None:
    """Choose a token for each row from logits (B, V), and end the rows that it ends."""
    log_probabilities = logits.log_softmax(dim=-1)
    choice = penalized(logits, [row.prompt for row in rows], [row.new for row in rows], sampling)
    if sampling.temperature == 0:
        chosen = choice.argmax(dim=-1)
    else:
        chosen = draw(narrowed(choice, sampling), [row.numbers.random() for row in rows])
    own = log_probabilities.gather(1, chosen.unsqueeze(1)).squeeze(1).tolist()
    likeliest = log_probabilities.topk(num_alternatives)
    alternatives = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
    for row, token, log_probability, (others, theirs) in zip(rows, chosen.tolist(), own, alternatives, strict=True):
        if token == end_id or token in sampling.stop_tokens:
            row.ended = "end" if token == end_id else "stop"
            continue
        row.tokens.append(Token(token, log_probability, tuple(zip(others, theirs, strict=True))))
        if len(row.tokens) == row.wanted:
            row.ended = "max_new_tokens" if sampling.max_new_tokens is not None else "context"


def _step(decoder: Decoder, rows: list[_Row], cache: Cache) -> Tensor:
    """Logits (B, V) after each row's newest token; a row whose context is full starts again with its last half."""
    full = [i for i, length in enumerate(cache.lengths) if length == decoder.config.context_length]
    for i in full:
        cache.lengths[i] -= 1  # the step below writes what the new prefill overwrites
    logits = decoder.step([row.tokens[-1].id for row in rows], cache)
    for i in full:
        logits[i] = decoder.prefill(_window(rows[i], cache), cache, i)
    return logits


def _window(row: _Row, cache: Cache) -> list[int]:
    """What a row's context starts with: everything, or where that is too long, half a context of its end."""
    ids = [*row.prompt, *row.new]
    return ids if len(ids) <= cache.context_length else ids[-max(1, cache.context_length // 2) :]
