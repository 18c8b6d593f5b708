"""What generation gives, as token ids."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Ended = Literal["end", "stop", "max_new_tokens", "context"]
"""Why a continuation ended: with the text, at a stop token, at the length asked for, or with the context full."""


@dataclass(frozen=True)
class Token:
    """A new id with its log-probability, and the likeliest ids in its place with theirs, likeliest first."""

    id: int
    log_probability: float
    alternatives: tuple[tuple[int, float], ...] = ()


class Continuation(NamedTuple):
    """New ids, without the prompt and without the token that ended them; each with its log-probability.

    Log-probabilities are natural, and the model's own: before any control, at temperature 1.
    """

    ids: list[int]
    log_probabilities: list[float]
    ended: Ended
