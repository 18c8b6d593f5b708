"""Decoding token by token with a cache, and the samplers. Token ids only: text and Trainer are unknown here."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_lm.layers import softmax
from lit_lm.model import KVCache, Transformer


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Raises:
        ValueError: listing everything that is wrong with the values, a line each.
    """

    max_new_tokens: int | None = None
    """Tokens to add at most; null: until the context is full."""
    temperature: float = 0.8
    """Divides the logits; 0 takes the likeliest token every time."""
    top_k: int | None = None
    """Choose among this many likeliest tokens; null: among all."""
    top_p: float = 0.95
    """Choose among the fewest likeliest tokens whose probabilities reach this sum."""
    num_samples: int = 1
    """Continuations of each prompt."""

    def __post_init__(self) -> None:
        problems = []
        for name in ("max_new_tokens", "top_k", "num_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                problems.append(f"{name} is {value}; it must be at least 1")
        if self.temperature < 0:
            problems.append(f"temperature is {self.temperature}; it must be at least 0")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p is {self.top_p}; it must be more than 0 and at most 1")
        if problems:
            raise ValueError("\n".join(problems))


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Logits (B, V) with all but the k largest of each row at -inf (ties with the k-th stay)."""
    threshold = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < threshold, float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Logits (B, V) with all at -inf but the fewest whose probabilities reach p (Holtzman et al. 2020)."""
    ordered, order = logits.sort(descending=True)
    probabilities = softmax(ordered)
    before = probabilities.cumsum(dim=-1) - probabilities  # of the likelier tokens; 0 for the likeliest
    dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, before >= p)
    return logits.masked_fill(dropped, float("-inf"))


def next_token(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """One id (B) for each row of logits (B, V)."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float() / sampling.temperature
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    # Drawn on the CPU, so that a seed gives the same text on every device.
    return torch.multinomial(softmax(logits).cpu(), 1, generator=generator).squeeze(1).to(logits.device)


@torch.inference_mode()
def generate(model: Transformer, prompt: list[int], sampling: Sampling, *, seed: int, end_id: int) -> list[list[int]]:
    """`sampling.num_samples` continuations of a prompt, each without the prompt and without the closing `end_id`.

    A continuation ends at `end_id`, after `max_new_tokens`, or where the context is full. The result is a function of
    the arguments alone.

    Raises:
        ValueError: if the prompt is empty or leaves no room in the context for the tokens asked for.
    """
    config, device, training = model.config, model.head.weight.device, model.training
    room = config.context_length - len(prompt)
    wanted = room if sampling.max_new_tokens is None else sampling.max_new_tokens
    if not prompt:
        raise ValueError("the prompt is empty; it needs at least one token")
    if not 0 < wanted <= room:
        raise ValueError(
            f"a prompt of {len(prompt)} tokens and {max(1, wanted)} new ones do not fit into "
            f"the context of {config.context_length}; the prompt leaves room for {max(0, room)}"
        )
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    cache = KVCache(config, sampling.num_samples, device, _compute_dtype(model))
    ids = torch.tensor([prompt] * sampling.num_samples, device=device)
    ended = torch.zeros(sampling.num_samples, dtype=torch.bool, device=device)
    new: list[Tensor] = []
    for _ in range(wanted):
        chosen = next_token(model(ids, cache)[:, -1], sampling, generator)
        ended |= chosen == end_id
        new.append(chosen)
        if ended.all():
            break
        ids = chosen.unsqueeze(1)
    model.train(training)
    continuations = torch.stack(new, dim=1).tolist()
    return [tokens[: tokens.index(end_id)] if end_id in tokens else tokens for tokens in continuations]


def _compute_dtype(model: Transformer) -> torch.dtype:
    """What the projections give: autocast's type where it is on, else the weights'."""
    device_type = model.head.weight.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return model.head.weight.dtype
