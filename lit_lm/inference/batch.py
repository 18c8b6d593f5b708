"""Continuations in progress, which join and leave between two tokens.

Shapes: B rows, V vocabulary.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lit_lm.inference.continuation import Continuation, Ended
from lit_lm.inference.engine import Cache, Engine
from lit_lm.inference.sampling import SamplingConfig, sample
from lit_lm.model.config import TransformerConfig

StoppingCriterion = Callable[[int], bool]
"""Called with each new token id of a continuation; returns True to end it after this token."""


@dataclass(eq=False)
class Row:
    """A continuation in progress."""

    prompt: Sequence[int]
    sampling: SamplingConfig
    max_tokens: int
    """Maximum number of new tokens."""
    uniforms: random.Random
    """The row's own random number generator: one number per token."""
    criterion: StoppingCriterion | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these ids before all sampling controls."""
    ids: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    ended: Ended | None = None

    def add(self, token: int, log_probability: float, end_id: int) -> None:
        """Append a token unless it is an end-of-text or stop token, and end the row if necessary."""
        if token == end_id or token in self.sampling.stop_tokens:
            self.ended = "end" if token == end_id else "stop"
            return
        self.ids.append(token)
        self.log_probabilities.append(log_probability)
        if self.criterion is not None and self.criterion(token):
            self.ended = "stop"
        elif len(self.ids) == self.max_tokens:
            self.ended = "max_new_tokens" if self.sampling.max_new_tokens is not None else "context"

    def continuation(self) -> Continuation:
        """The result, once the row has ended."""
        assert self.ended is not None
        return Continuation(self.ids, self.log_probabilities, self.ended)


def make_rows(
    config: TransformerConfig,
    prompt: Sequence[int],
    sampling: SamplingConfig,
    seed: int,
    criterion: Callable[[Sequence[int]], StoppingCriterion] | None = None,
    logit_bias: Mapping[int, float] = {},
) -> list[Row]:
    """The rows of the `sampling.num_samples` continuations of a prompt.

    The random numbers of a row depend only on the seed and the index of the sample.

    Raises:
        ValueError: if the prompt is empty or leaves too little room in the context for the new tokens, or a token is
            not in the vocabulary.
    """
    check_tokens("stop_tokens", sampling.stop_tokens, config)
    check_tokens("logit_bias", tuple(logit_bias), config)
    check_tokens("the prompt", prompt, config)
    count = max_tokens(len(prompt), sampling, config.context_length)
    return [
        Row(prompt, sampling, count, random.Random(f"{seed}/{number}"), criterion and criterion(prompt), logit_bias)
        for number in range(sampling.num_samples)
    ]


def check_tokens(where: str, ids: Sequence[int], config: TransformerConfig) -> None:
    """Refuse ids that the vocabulary lacks.

    Raises:
        ValueError: if there are any.
    """
    size = config.vocab_size
    if wrong := [token for token in ids if not 0 <= token < size]:
        raise ValueError(f"{where} has {', '.join(map(str, wrong[:5]))}; token ids range from 0 to {size - 1}")


def max_tokens(prompt_size: int, sampling: SamplingConfig, context_length: int) -> int:
    """The maximum number of new tokens for a prompt.

    Raises:
        ValueError: if the prompt is empty, or the new tokens do not fit into the context.
    """
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


class Batch:
    """Rows that are extended together. They are independent: what a row becomes does not depend on the others, bit for
    bit with the C step, otherwise up to rounding.
    """

    def __init__(self, engine: Engine, num_rows: int, end_id: int) -> None:
        """
        Args:
            engine: Runs the model.
            num_rows: Maximum number of rows at a time.
            end_id: Id of the end-of-text token, which is left out of the continuations.
        """
        self.engine, self.end_id = engine, end_id
        self.rows: list[Row] = []
        """The rows of the last step, in the order of its logits."""
        self._joining: list[Row] = []
        self._cache = engine.new_cache(num_rows)
        self._cache.select_rows([])

    def join(self, rows: Sequence[Row]) -> None:
        """Add rows. Their prompts are computed in the next step; rows with the same prompt share this."""
        self._joining += rows

    def active(self) -> list[Row]:
        """The rows that have not ended. A row leaves when its `ended` is set, also by the caller."""
        return [row for row in (*self.rows, *self._joining) if row.ended is None]

    def step(self) -> tuple[Tensor, Tensor]:
        """Add one token to every active row, or end it; there must be one.

        Returns:
            The logits (B, V) from which the tokens of `rows` were sampled, and their logsumexp (B). They are valid
            until the next step.
        """
        self._leave()
        parts = [self._next()] if self.rows else []
        if self._joining:
            parts.append(self._prefill())
        logits = parts[0] if len(parts) == 1 else torch.cat(parts)
        normalizers = self.engine.logsumexp(logits)
        chosen = _sampled(logits, self.rows)
        log_probabilities = logits.gather(1, chosen.unsqueeze(1)).squeeze(1) - normalizers
        for row, token, value in zip(self.rows, chosen.tolist(), log_probabilities.tolist(), strict=True):
            row.add(token, value, self.end_id)
        return logits, normalizers

    def _leave(self) -> None:
        """Forget the rows that have ended."""
        kept = [number for number, row in enumerate(self.rows) if row.ended is None]
        if len(kept) < len(self.rows):
            self._cache.select_rows(kept)
            self.rows = [self.rows[number] for number in kept]
        self._joining = [row for row in self._joining if row.ended is None]

    def _next(self) -> Tensor:
        """The logits (B, V) after each row's newest token; a full context is replaced by its last half."""
        rows, cache = self.rows, self._cache
        full = [number for number, length in enumerate(cache.lengths) if length == cache.context_length]
        for number in full:
            cache.lengths[number] -= 1  # the prefill below overwrites what the step writes here
        logits = self.engine.step([row.ids[-1] for row in rows], cache)
        anew = {n: self.engine.prefill(_window([*rows[n].prompt, *rows[n].ids], cache), cache, n) for n in full}
        return torch.stack([anew.get(n, row) for n, row in enumerate(logits)]) if anew else logits

    def _prefill(self) -> Tensor:
        """Take in the joining rows; return the logits (B, V) after their prompts."""
        sharing: dict[tuple[int, ...], list[int]] = {}
        for number, row in enumerate(self._joining, start=len(self.rows)):
            sharing.setdefault(tuple(row.prompt), []).append(number)
        self._cache.add_rows(len(self._joining))
        self.rows, self._joining = [*self.rows, *self._joining], []
        after: dict[int, Tensor] = {}
        for prompt, (first, *others) in sharing.items():
            logits = self.engine.prefill(_window(prompt, self._cache), self._cache, first)
            self._cache.copy_row(first, others)
            after |= dict.fromkeys((first, *others), logits)
        return torch.stack([after[number] for number in sorted(after)])


def _sampled(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """The next id (B) of each row; rows with the same controls are sampled together."""
    if any(row.logit_bias for row in rows):
        logits = logits.clone()
        for row, each in zip(logits, rows, strict=True):
            row[list(each.logit_bias)] += torch.tensor(list(each.logit_bias.values()), dtype=row.dtype).to(row.device)
    uniforms = [row.uniforms.random() for row in rows]
    groups: dict[SamplingConfig, list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row.sampling, []).append(number)
    chosen = [torch.empty(0)] * len(rows)
    for sampling, numbers in groups.items():
        own = logits if len(groups) == 1 else logits[numbers]
        prompts, new = [rows[n].prompt for n in numbers], [rows[n].ids for n in numbers]
        ids = sample(own, prompts, new, sampling, [uniforms[n] for n in numbers])
        if len(groups) == 1:
            return ids
        for number, token in zip(numbers, ids, strict=True):
            chosen[number] = token
    return torch.stack(chosen)


def _window(ids: Sequence[int], cache: Cache) -> Sequence[int]:
    """The ids if they fit into the context, else the last ones, which fill half of it."""
    return ids if len(ids) <= cache.context_length else ids[-max(1, cache.context_length // 2) :]
