"""Beam search: finds likely continuations by extending several at once.

As in transformers with `early_stopping=False`: at each step, the finished ones of the best candidates are set aside and
the others continue, until the best running beam, scored at its present length, does not beat the worst of num_beams
finished ones. Shapes: V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lit_lm.inference.continuation import Continuation, Ended
from lit_lm.inference.engine import Engine
from lit_lm.inference.sampling import NO_TOKEN, SamplingConfig, apply_penalties


@dataclass(frozen=True)
class _Beam:
    score: float
    """Sum of log-probabilities after penalties; once finished, divided by length^length_penalty."""
    parent: int
    """Index of the running beam that this one extends."""
    ids: list[int]
    log_probabilities: list[float]
    ended: Ended | None = None


def beam_search(
    engine: Engine, prompt: Sequence[int], wanted: int, sampling: SamplingConfig, end_id: int
) -> list[Continuation]:
    """Return the `sampling.num_samples` best continuations of a prompt, best first, of at most `wanted` tokens.

    Raises:
        ValueError: if there is no next token, because the model diverged or all tokens are excluded.
    """
    cache = engine.new_cache(1)
    logits = engine.prefill(prompt, cache, 0).unsqueeze(0)
    running, finished = [_Beam(0.0, 0, [], [])], list[_Beam]()
    while running:
        candidates = _candidates(running, logits, prompt, wanted, sampling, end_id)
        finished += [_finished(beam, sampling) for beam in candidates[: sampling.num_beams] if beam.ended is not None]
        finished = sorted(finished, key=lambda beam: -beam.score)[: sampling.num_beams]
        running = [beam for beam in candidates if beam.ended is None][: sampling.num_beams]
        if running and len(finished) == sampling.num_beams:
            best_possible = running[0].score / len(running[0].ids) ** sampling.length_penalty
            if best_possible <= finished[-1].score:
                break
        if running:
            cache.select_rows([beam.parent for beam in running])
            logits = engine.step([beam.ids[-1] for beam in running], cache)
    return [
        Continuation(beam.ids, beam.log_probabilities, beam.ended)
        for beam in finished[: sampling.num_samples]
        if beam.ended is not None
    ]


def _candidates(
    running: list[_Beam], logits: Tensor, prompt: Sequence[int], wanted: int, sampling: SamplingConfig, end_id: int
) -> list[_Beam]:
    """Return the best beams extended by one token, best first: enough of them that num_beams are unfinished.

    logits (beams, V) are for the token after each running beam.
    """
    ends = {end_id, *sampling.stop_tokens}
    log_probabilities = logits.log_softmax(dim=-1)
    scores = apply_penalties(log_probabilities, [prompt] * len(running), [beam.ids for beam in running], sampling)
    before = torch.tensor([[beam.score] for beam in running], device=scores.device, dtype=scores.dtype)
    totals = (scores + before).flatten()
    best = totals.topk(min((1 + len(ends)) * sampling.num_beams, len(totals)))
    if not math.isfinite(best.values[0]):
        raise ValueError(NO_TOKEN)
    candidates = []
    for score, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        parent, token = divmod(place, logits.shape[-1])
        beam, own = running[parent], float(log_probabilities[parent, token])
        if token in ends:
            ended: Ended = "end" if token == end_id else "stop"
            candidates.append(_Beam(score, parent, beam.ids, beam.log_probabilities, ended))
            continue
        full = len(beam.ids) + 1 == wanted
        at_limit: Ended = "max_new_tokens" if sampling.max_new_tokens is not None else "context"
        candidates.append(
            _Beam(score, parent, [*beam.ids, token], [*beam.log_probabilities, own], at_limit if full else None)
        )
    return candidates


def _finished(beam: _Beam, sampling: SamplingConfig) -> _Beam:
    """Return the beam with its score normalized by length, including the token that ended it."""
    length = len(beam.ids) + (beam.ended in ("end", "stop"))
    return replace(beam, score=beam.score / length**sampling.length_penalty)
