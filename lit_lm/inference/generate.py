"""From prompts to continuations: prefill, choose, step, until every row has ended."""

import random
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lit_lm.inference.beams import beam_search
from lit_lm.inference.continuation import Continuation, Ended
from lit_lm.inference.engine import Cache, Engine, make_engine
from lit_lm.inference.sampling import Sampling, choose
from lit_lm.model.transformer import Transformer


@dataclass(frozen=True)
class Token:
    """A new id with its log-probability, and the likeliest ids in its place with theirs, likeliest first."""

    id: int
    log_probability: float
    alternatives: tuple[tuple[int, float], ...] = ()


Watch = Callable[[int], bool]
"""Is told each new id of a row, and says whether the row is to end with it."""


@dataclass
class _Row:
    """A continuation in the making."""

    prompt: Sequence[int]
    wanted: int
    """New tokens at most."""
    numbers: random.Random
    """The row's own source of random numbers, one for each token."""
    watch: Watch | None = None
    ids: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    ended: Ended | None = None


def generate(
    model: Transformer | Engine,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    seeds: Sequence[int],
    end_id: int,
    watch: Callable[[Sequence[int]], Watch] | None = None,
) -> list[list[Continuation]]:
    """`sampling.num_samples` continuations of each prompt.

    Prompts may differ in length. A row's random numbers come from its prompt's seed and the number of the sample
    alone, and no row sees another, so a prompt and its seed give the same ids whatever else is in the batch, in
    whatever order. On the CPU with step.c that is so to the last bit. Elsewhere there is rounding: another number of
    rows has its sums taken in another order, which changes logits in their last digits, and with them a choice between
    tokens nearer than that to equal, or by a random number that near to the border between two.

    Args:
        model: A Transformer, or a Decoder made of one (which saves making it again).
        prompts: Token ids.
        sampling: How tokens are chosen, and how many.
        seeds: One for each prompt.
        end_id: The id that ends a text; left out of the continuation.
        watch: Gives what watches a continuation of a prompt; the id with which it ends it stays. Beams are not watched.

    Raises:
        ValueError: if a prompt is empty or leaves no room in the context for the tokens asked for, or a stop token is
            not in the vocabulary.
    """
    engine = _engine(model)
    _check_stop_tokens(sampling, engine)
    wanted = [_wanted(len(prompt), sampling, engine.config.context_length) for prompt in prompts]
    if sampling.num_beams > 1:
        return [beam_search(engine, *each, sampling, end_id) for each in zip(prompts, wanted, strict=True)]
    rows = [
        _Row(prompt, count, random.Random(f"{seed}/{sample}"), watch and watch(prompt))
        for prompt, seed, count in zip(prompts, seeds, wanted, strict=True)
        for sample in range(sampling.num_samples)
    ]
    for _ in _lengthen(engine, rows, sampling, end_id) if rows else ():
        pass
    done = [Continuation(row.ids, row.log_probabilities, _ended(row)) for row in rows]
    return [done[i : i + sampling.num_samples] for i in range(0, len(done), sampling.num_samples)]


def stream(
    model: Transformer | Engine,
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
    engine = _engine(model)
    if sampling.num_beams > 1:
        raise ValueError(f"num_beams is {sampling.num_beams}; beam search has no text before its end: set it to 1")
    _check_stop_tokens(sampling, engine)
    wanted = _wanted(len(prompt), sampling, engine.config.context_length)
    row = _Row(prompt, wanted, random.Random(f"{seed}/0"))
    return _stream(_lengthen(engine, [row], sampling, end_id), row, num_alternatives)


def _stream(steps: Iterator[tuple[Tensor, Tensor]], row: _Row, num_alternatives: int) -> Generator[Token, None, Ended]:
    for logits, totals in steps:
        if row.ended not in ("end", "stop"):
            likeliest = logits[0].topk(num_alternatives)
            values = (likeliest.values - totals[0]).tolist()
            alternatives = tuple(zip(likeliest.indices.tolist(), values, strict=True))
            yield Token(row.ids[-1], row.log_probabilities[-1], alternatives)
    return _ended(row)


def _check_stop_tokens(sampling: Sampling, engine: Engine) -> None:
    size = engine.config.vocab_size
    if wrong := [token for token in sampling.stop_tokens if not 0 <= token < size]:
        raise ValueError(f"stop_tokens has {', '.join(map(str, wrong))}; the vocabulary has the ids 0 to {size - 1}")


def _engine(model: Transformer | Engine) -> Engine:
    return make_engine(model) if isinstance(model, Transformer) else model


def _ended(row: _Row) -> Ended:
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


def _lengthen(engine: Engine, rows: list[_Row], sampling: Sampling, end_id: int) -> Iterator[tuple[Tensor, Tensor]]:
    """At each turn, give every row that has not ended one more token, or its end. Gives logits (B, V) and what is to
    be taken off them for log-probabilities (B).
    """
    cache, logits = _prefilled(engine, rows)
    while True:
        totals = engine.logsumexp(logits)
        numbers = [row.numbers.random() for row in rows]
        chosen = choose(logits, [row.prompt for row in rows], [row.ids for row in rows], sampling, numbers)
        own = logits.gather(1, chosen.unsqueeze(1)).squeeze(1) - totals
        _add(chosen.tolist(), own.tolist(), rows, sampling, end_id)
        yield logits, totals
        kept = [i for i, row in enumerate(rows) if row.ended is None]
        if not kept:
            return
        if len(kept) < len(rows):
            cache.select_rows(kept)
            rows = [rows[i] for i in kept]
        logits = _step(engine, rows, cache)


def _prefilled(engine: Engine, rows: list[_Row]) -> tuple[Cache, Tensor]:
    """The cache after each row's prompt, with logits (B, V); a prompt that several rows share is read once."""
    sharing: dict[tuple[int, ...], list[int]] = {}
    for number, row in enumerate(rows):
        sharing.setdefault(tuple(row.prompt), []).append(number)
    cache = engine.new_cache(len(rows))
    logits = [torch.empty(0)] * len(rows)
    for prompt, (first, *others) in sharing.items():
        after = engine.prefill(_window(prompt, cache), cache, first)
        cache.copy_row(first, others)
        for number in (first, *others):
            logits[number] = after
    return cache, torch.stack(logits)


def _add(chosen: list[int], log_probabilities: list[float], rows: list[_Row], sampling: Sampling, end_id: int) -> None:
    """Add its id to each row, and end the rows that it ends."""
    for row, token, log_probability in zip(rows, chosen, log_probabilities, strict=True):
        if token == end_id or token in sampling.stop_tokens:
            row.ended = "end" if token == end_id else "stop"
            continue
        row.ids.append(token)
        row.log_probabilities.append(log_probability)
        if row.watch is not None and row.watch(token):
            row.ended = "stop"
        elif len(row.ids) == row.wanted:
            row.ended = "max_new_tokens" if sampling.max_new_tokens is not None else "context"


def _step(engine: Engine, rows: list[_Row], cache: Cache) -> Tensor:
    """Logits (B, V) after each row's newest token; a row whose context is full starts again with its last half."""
    full = [i for i, length in enumerate(cache.lengths) if length == cache.context_length]
    for i in full:
        cache.lengths[i] -= 1  # what the step writes there, the prefill writes anew
    logits = engine.step([row.ids[-1] for row in rows], cache)
    anew = {i: engine.prefill(_window([*rows[i].prompt, *rows[i].ids], cache), cache, i) for i in full}
    return torch.stack([anew.get(i, row) for i, row in enumerate(logits)]) if anew else logits


def _window(ids: Sequence[int], cache: Cache) -> Sequence[int]:
    """What a context starts with: all of ids, or where they are too many, as many of the last as fill half of it."""
    return ids if len(ids) <= cache.context_length else ids[-max(1, cache.context_length // 2) :]
