"""Generate continuations of prompts: prefill, then sample and step until every row has ended.

Shapes: B rows, V vocabulary.
"""

import random
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lit_lm.inference.beams import beam_search
from lit_lm.inference.continuation import Continuation, Ended, Token
from lit_lm.inference.engine import Cache, Engine, make_engine
from lit_lm.inference.sampling import SamplingConfig, sample
from lit_lm.memory import check_memory
from lit_lm.model.cost import cache_memory
from lit_lm.model.transformer import Transformer

StoppingCriterion = Callable[[int], bool]
"""Called with each new token id of a continuation; returns True to end it after this token."""


@dataclass
class _Row:
    """A continuation in progress."""

    prompt: Sequence[int]
    max_tokens: int
    uniforms: random.Random
    """The row's own random number generator: one number per token."""
    criterion: StoppingCriterion | None = None
    ids: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    ended: Ended | None = None


def generate(
    model: Transformer | Engine,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    seeds: Sequence[int],
    end_id: int,
    criterion: Callable[[Sequence[int]], StoppingCriterion] | None = None,
) -> list[list[Continuation]]:
    """Return `sampling.num_samples` continuations of each prompt.

    Prompts may differ in length. Rows are independent, and the random numbers of a row depend only on its prompt's seed
    and the index of the sample, so a prompt and its seed give the same ids in any batch: bit for bit with the C step,
    otherwise up to rounding. Rounding depends on the number of rows; it can change a choice between nearly equal
    tokens, or a draw near the border between two.

    Args:
        model: A Transformer, or an engine made from one, for repeated use.
        prompts: Token ids of each prompt.
        sampling: Sampling controls.
        seeds: One seed per prompt.
        end_id: Id of the end-of-text token, which is left out of the continuation.
        criterion: Called with a prompt, returns the stopping criterion of one continuation. The token that meets the
            criterion is kept. Beam search ignores stopping criteria.

    Raises:
        ValueError: if a prompt is empty or leaves too little room in the context for the new tokens, if a token is not
            in the vocabulary, or if the rows do not fit into the machine's memory.
    """
    engine = _engine(model)
    _check_tokens("stop_tokens", sampling.stop_tokens, engine)
    for prompt in prompts:
        _check_tokens("the prompt", prompt, engine)
    max_tokens = [_max_tokens(len(prompt), sampling, engine.config.context_length) for prompt in prompts]
    # a step of beam search copies the cache
    num_rows = 2 * sampling.num_beams if sampling.num_beams > 1 else len(prompts) * sampling.num_samples
    check_memory(
        cache_memory(engine.config, num_rows),
        f"generating {num_rows:,} rows at once, with a context of {engine.config.context_length:,} tokens,",
        "generate fewer at once: reduce num_samples, num_beams or the number of prompts in a batch",
    )
    if sampling.num_beams > 1:
        return [beam_search(engine, *each, sampling, end_id) for each in zip(prompts, max_tokens, strict=True)]
    rows = [
        _Row(prompt, count, random.Random(f"{seed}/{number}"), criterion and criterion(prompt))
        for prompt, seed, count in zip(prompts, seeds, max_tokens, strict=True)
        for number in range(sampling.num_samples)
    ]
    if rows:
        for _ in _extend(engine, rows, sampling, end_id):
            pass
    done = [Continuation(row.ids, row.log_probabilities, _ended(row)) for row in rows]
    return [done[i : i + sampling.num_samples] for i in range(0, len(done), sampling.num_samples)]


def stream(
    model: Transformer | Engine,
    prompt: Sequence[int],
    sampling: SamplingConfig,
    *,
    seed: int,
    end_id: int,
    num_alternatives: int = 0,
) -> Generator[Token, None, Ended]:
    """Stream the tokens of the first continuation that `generate` returns for this seed; return why it ended.

    Each token is computed on demand: closing the generator stops the computation.

    Args:
        model, prompt, sampling, seed, end_id: As for `generate`.
        num_alternatives: Number of likeliest ids to yield with each token.

    Raises:
        ValueError: as for `generate`, at the call; also with beam search, whose tokens are known only at the end.
    """
    engine = _engine(model)
    if sampling.num_beams > 1:
        raise ValueError(f"num_beams is {sampling.num_beams}, but beam search cannot be streamed; set num_beams to 1")
    _check_tokens("stop_tokens", sampling.stop_tokens, engine)
    _check_tokens("the prompt", prompt, engine)
    max_tokens = _max_tokens(len(prompt), sampling, engine.config.context_length)
    row = _Row(prompt, max_tokens, random.Random(f"{seed}/0"))
    return _stream(_extend(engine, [row], sampling, end_id), row, num_alternatives)


def _stream(steps: Iterator[tuple[Tensor, Tensor]], row: _Row, num_alternatives: int) -> Generator[Token, None, Ended]:
    for logits, normalizers in steps:
        if row.ended not in ("end", "stop"):
            likeliest = logits[0].topk(num_alternatives)
            values = (likeliest.values - normalizers[0]).tolist()
            alternatives = tuple(zip(likeliest.indices.tolist(), values, strict=True))
            yield Token(row.ids[-1], row.log_probabilities[-1], alternatives)
    return _ended(row)


def _check_tokens(where: str, ids: Sequence[int], engine: Engine) -> None:
    size = engine.config.vocab_size
    if wrong := [token for token in ids if not 0 <= token < size]:
        raise ValueError(f"{where} has {', '.join(map(str, wrong[:5]))}; token ids range from 0 to {size - 1}")


def _engine(model: Transformer | Engine) -> Engine:
    return make_engine(model) if isinstance(model, Transformer) else model


def _ended(row: _Row) -> Ended:
    assert row.ended is not None
    return row.ended


def _max_tokens(prompt_size: int, sampling: SamplingConfig, context_length: int) -> int:
    """Return the maximum number of new tokens for a prompt."""
    room = context_length - prompt_size
    count = room if sampling.max_new_tokens is None else sampling.max_new_tokens
    if not prompt_size:
        raise ValueError("the prompt is empty; it needs at least one token")
    if not sampling.sliding_window and not 0 < count <= room:
        raise ValueError(
            f"a prompt of {prompt_size} tokens and {max(1, count)} new ones do not fit into "
            f"the context of {context_length}; the prompt leaves room for {max(0, room)}"
        )
    return count


def _extend(engine: Engine, rows: list[_Row], sampling: SamplingConfig, end_id: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Add one token to every row, or end it, until all have ended; yield the logits (B, V) and their logsumexp (B)."""
    cache, logits = _prefilled(engine, rows)
    while True:
        normalizers = engine.logsumexp(logits)
        uniforms = [row.uniforms.random() for row in rows]
        chosen = sample(logits, [row.prompt for row in rows], [row.ids for row in rows], sampling, uniforms)
        log_probabilities = logits.gather(1, chosen.unsqueeze(1)).squeeze(1) - normalizers
        for row, token, value in zip(rows, chosen.tolist(), log_probabilities.tolist(), strict=True):
            _add(row, token, value, sampling, end_id)
        yield logits, normalizers
        kept = [i for i, row in enumerate(rows) if row.ended is None]
        if not kept:
            return
        if len(kept) < len(rows):
            cache.select_rows(kept)
            rows = [rows[i] for i in kept]
        logits = _step(engine, rows, cache)


def _prefilled(engine: Engine, rows: list[_Row]) -> tuple[Cache, Tensor]:
    """Return a cache of the prompts, and the logits (B, V) after them; rows with the same prompt share one prefill."""
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


def _add(row: _Row, token: int, log_probability: float, sampling: SamplingConfig, end_id: int) -> None:
    """Append a token to a row unless it is an end-of-text or stop token, and end the row if necessary."""
    if token == end_id or token in sampling.stop_tokens:
        row.ended = "end" if token == end_id else "stop"
        return
    row.ids.append(token)
    row.log_probabilities.append(log_probability)
    if row.criterion is not None and row.criterion(token):
        row.ended = "stop"
    elif len(row.ids) == row.max_tokens:
        row.ended = "max_new_tokens" if sampling.max_new_tokens is not None else "context"


def _step(engine: Engine, rows: list[_Row], cache: Cache) -> Tensor:
    """Return the logits (B, V) after each row's newest token; a full context is replaced by its last half."""
    full = [i for i, length in enumerate(cache.lengths) if length == cache.context_length]
    for i in full:
        cache.lengths[i] -= 1  # the prefill below overwrites what the step writes here
    logits = engine.step([row.ids[-1] for row in rows], cache)
    anew = {i: engine.prefill(_window([*rows[i].prompt, *rows[i].ids], cache), cache, i) for i in full}
    return torch.stack([anew.get(i, row) for i, row in enumerate(logits)]) if anew else logits


def _window(ids: Sequence[int], cache: Cache) -> Sequence[int]:
    """Return ids if they fit into the context, else the last ones, which fill half of it."""
    return ids if len(ids) <= cache.context_length else ids[-max(1, cache.context_length // 2) :]
