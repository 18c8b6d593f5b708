"""Sampling of the next token: each control is a small function of the logits.

Shapes: B rows, V vocabulary. Functions that depend on a row's earlier tokens take `ids`, one sequence per row.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_lm.model.layers import softmax

NEVER = float("-inf")
MAX_LENGTH_PENALTY = 10
"""With more, the power of a long text's length would overflow."""
NO_TOKEN = "cannot sample the next token: all logits are NaN or -inf (the model diverged, or every token is masked out)"


@dataclass(frozen=True)
class SamplingConfig:
    """Controls for sampling the next token.

    They apply in this order, as in transformers: repetition penalty, frequency and presence penalty, no repeated
    n-grams, temperature, top-k, top-p, min-p, typical-p. At temperature 0, the controls after temperature have no
    effect.

    Raises:
        ValueError: listing all invalid values, one per line.
    """

    max_new_tokens: int | None = None
    """Maximum number of new tokens; null: until the context is full."""
    temperature: float = 0.8
    """Divides the logits; 0 always takes the most likely token."""
    top_k: int | None = None
    """Keep only the top_k most likely tokens; null: keep all."""
    top_p: float = 0.95
    """Keep only the smallest set of most likely tokens whose probabilities sum to at least top_p."""
    min_p: float = 0.0
    """Keep only tokens with at least min_p times the probability of the most likely token."""
    typical_p: float = 1.0
    """Keep only the tokens whose surprisal is nearest to the entropy: the fewest whose probabilities sum to at least
    typical_p.
    """
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in the prompt or the new text; 1: no penalty."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each of its occurrences in the new text."""
    presence_penalty: float = 0.0
    """Subtracted once from the logit of each token that occurs in the new text."""
    no_repeat_ngram_size: int | None = None
    """Size of token n-grams that must not occur twice in prompt and new text together; null: no limit."""
    num_samples: int = 1
    """Number of continuations per prompt."""
    num_beams: int = 1
    """Number of beams for beam search, which requires temperature 0 and returns the num_samples best; 1: no search."""
    length_penalty: float = 1.0
    """Beam search divides a continuation's log-probability by length^length_penalty."""
    stop_tokens: tuple[int, ...] = ()
    """Ids of tokens that end a continuation, in addition to the end-of-text token; not part of the continuation."""
    sliding_window: bool = False
    """When the context is full, continue with its last half instead of stopping."""

    def __post_init__(self) -> None:
        problems = []
        for name in ("max_new_tokens", "top_k", "no_repeat_ngram_size", "num_samples", "num_beams"):
            value = getattr(self, name)
            if value is not None and value < 1:
                problems.append(f"{name} is {value}; it must be at least 1")
        if not 0 <= self.temperature < math.inf:
            problems.append(f"temperature is {self.temperature}; it must be at least 0")
        for name in ("top_p", "typical_p"):
            if not 0 < getattr(self, name) <= 1:
                problems.append(f"{name} is {getattr(self, name)}; it must be more than 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            problems.append(f"min_p is {self.min_p}; it must be at least 0 and at most 1")
        if not self.repetition_penalty > 0:
            problems.append(f"repetition_penalty is {self.repetition_penalty}; it must be more than 0")
        if not abs(self.length_penalty) <= MAX_LENGTH_PENALTY:
            problems.append(
                f"length_penalty is {self.length_penalty}; it must be between {-MAX_LENGTH_PENALTY} and "
                f"{MAX_LENGTH_PENALTY}"
            )
        for name in ("repetition_penalty", "frequency_penalty", "presence_penalty"):
            if not math.isfinite(getattr(self, name)):
                problems.append(f"{name} is {getattr(self, name)}; it must be a finite number")
        if self.num_beams > 1 and self.temperature > 0:
            problems.append(f"num_beams is {self.num_beams}; beam search does not sample: set temperature to 0")
        if 1 < self.num_beams < self.num_samples:
            problems.append(f"num_samples is {self.num_samples}; it must be at most num_beams ({self.num_beams})")
        if self.sliding_window and self.num_beams > 1:
            problems.append("sliding_window does not work with beam search; set num_beams to 1")
        if self.sliding_window and self.max_new_tokens is None:
            problems.append("sliding_window has no limit on the number of new tokens; set max_new_tokens")
        if problems:
            raise ValueError("\n".join(problems))


def penalize_repetition(logits: Tensor, ids: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """Logits (B, V) with positive ones of the tokens in `ids` divided by the penalty and negative ones multiplied by it
    (Keskar et al. 2019).
    """
    logits = logits.clone()
    for row, tokens in zip(logits, ids, strict=True):
        known = torch.tensor(sorted(set(tokens)), device=row.device, dtype=torch.long)
        value = row[known]
        row[known] = torch.where(value < 0, value * penalty, value / penalty)
    return logits


def penalize_frequency(logits: Tensor, ids: Sequence[Sequence[int]], frequency: float, presence: float) -> Tensor:
    """Logits (B, V) minus `frequency` per occurrence in `ids`, minus `presence` for any (as in OpenAI's API)."""
    logits = logits.clone()
    for row, tokens in zip(logits, ids, strict=True):
        counts = Counter(tokens)
        known = torch.tensor(list(counts), device=row.device, dtype=torch.long)
        times = torch.tensor(list(counts.values()), device=row.device, dtype=row.dtype)
        row[known] -= frequency * times + presence
    return logits


def forbid_repeated_ngrams(logits: Tensor, ids: Sequence[Sequence[int]], n: int) -> Tensor:
    """Logits (B, V) with -inf for tokens that would complete an n-gram that already occurs in `ids`."""
    logits = logits.clone()
    for row, tokens in zip(logits, ids, strict=True):
        last = tuple(tokens[len(tokens) - n + 1 :])
        starts = range(len(tokens) - n + 1)
        row[[tokens[start + n - 1] for start in starts if tuple(tokens[start : start + n - 1]) == last]] = NEVER
    return logits


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Logits (B, V) with all but the k largest of each row at -inf (ties with the k-th are kept)."""
    threshold = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < threshold, NEVER)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Logits (B, V) with -inf outside the smallest set whose probabilities sum to at least p (Holtzman et al. 2020)."""
    probabilities = softmax(logits)
    # Tokens below (1 - p) / V sum to less than 1 - p, so the others reach p: sort only these.
    least = 0.999 * (1 - p) / logits.shape[-1]
    ordered, order = probabilities.topk(int((probabilities >= least).sum(dim=-1).max()))
    before = ordered.cumsum(dim=-1) - ordered  # sum over all likelier tokens
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, before < p)
    return logits.masked_fill(~kept, NEVER)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Logits (B, V) with -inf for probabilities below p times that of the likeliest token (Nguyen et al. 2024)."""
    probabilities = softmax(logits)
    return logits.masked_fill(probabilities < p * probabilities.amax(dim=-1, keepdim=True), NEVER)


def keep_typical(logits: Tensor, p: float) -> Tensor:
    """Logits (B, V) with -inf for all tokens except those with surprisal nearest to the entropy, the fewest whose
    probabilities sum to at least p (Meister et al. 2023).
    """
    log_probabilities = logits.log_softmax(dim=-1)
    probabilities = log_probabilities.exp()
    entropy = -(probabilities * log_probabilities).nansum(dim=-1, keepdim=True)
    distance, order = (-log_probabilities - entropy).abs().sort()
    reached = probabilities.gather(1, order).cumsum(dim=-1)
    last = (reached < p).sum(dim=-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, distance > distance.gather(1, last))
    return logits.masked_fill(dropped, NEVER)


def apply_penalties(
    logits: Tensor, prompts: Sequence[Sequence[int]], new: Sequence[Sequence[int]], sampling: SamplingConfig
) -> Tensor:
    """Logits (B, V) after the controls that depend on the tokens of each row's prompt and new text."""
    if sampling.repetition_penalty != 1:
        logits = penalize_repetition(logits, _joined(prompts, new), sampling.repetition_penalty)
    if sampling.frequency_penalty or sampling.presence_penalty:
        logits = penalize_frequency(logits, new, sampling.frequency_penalty, sampling.presence_penalty)
    if sampling.no_repeat_ngram_size is not None:
        logits = forbid_repeated_ngrams(logits, _joined(prompts, new), sampling.no_repeat_ngram_size)
    return logits


def _joined(prompts: Sequence[Sequence[int]], new: Sequence[Sequence[int]]) -> list[list[int]]:
    return [[*prompt, *ids] for prompt, ids in zip(prompts, new, strict=True)]


def apply_filters(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    """Logits (B, V) after temperature and the controls that exclude tokens."""
    # Subtract the maximum and bound the divisor, so that a tiny temperature acts like 0 and nothing overflows.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / max(sampling.temperature, 1e-20)
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p > 0:
        logits = keep_min_p(logits, sampling.min_p)
    if sampling.typical_p < 1:
        logits = keep_typical(logits, sampling.typical_p)
    return logits


def draw(logits: Tensor, uniforms: Sequence[float]) -> Tensor:
    """One id per row (B) of logits (B, V): the first whose cumulative probability exceeds the row's number.

    `uniforms` holds one number in [0, 1) per row. A number gives the same token on every device, unless it is within
    rounding error of the border between two tokens.

    Raises:
        ValueError: if all tokens of a row are excluded.
    """
    probabilities = softmax(logits)
    if probabilities.device.type == "mps":  # MPS has no float64
        probabilities = probabilities.cpu()
    running = probabilities.cumsum(dim=-1, dtype=torch.float64)
    if not (running[:, -1] > 0).all():
        raise ValueError(NO_TOKEN)
    share = torch.tensor(uniforms, dtype=torch.float64, device=running.device).unsqueeze(1)
    return torch.searchsorted(running, share * running[:, -1:], right=True).squeeze(1).to(logits.device)


def sample(
    logits: Tensor,
    prompts: Sequence[Sequence[int]],
    new: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    uniforms: Sequence[float],
) -> Tensor:
    """Next id (B) of each row, sampled from logits (B, V) float32 with all controls and one of `uniforms` per row."""
    logits = apply_penalties(logits, prompts, new, sampling)
    if sampling.temperature == 0:
        # On the CPU, numpy's argmax takes a tenth of the time.
        chosen = torch.from_numpy(logits.numpy().argmax(axis=-1)) if logits.is_cpu else logits.argmax(dim=-1)
        if not all(map(math.isfinite, logits.gather(1, chosen.unsqueeze(1)).flatten().tolist())):
            raise ValueError(NO_TOKEN)
        return chosen
    return draw(apply_filters(logits, sampling), uniforms)


def derive_seed(seed: int, *place: object) -> int:
    """A seed for one place in a run, or for one prompt; depends only on the arguments."""
    digest = hashlib.blake2b(repr((seed, *place)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
