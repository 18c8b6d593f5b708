"""Results of generation, as token ids."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Ended = Literal["end", "stop", "max_new_tokens", "context"]
"""Why a continuation ended: end-of-text token, stop token or stop string, max_new_tokens reached, or context full."""


@dataclass(frozen=True)
class Token:
    """A new id with its log-probability; `alternatives` are the likeliest ids with theirs, likeliest first."""

    id: int
    log_probability: float
    alternatives: tuple[tuple[int, float], ...] = ()


class Continuation(NamedTuple):
    """New ids and their log-probabilities, without the prompt and without an end-of-text or stop token.

    Log-probabilities are natural logarithms, and the model's own: before all sampling controls, at temperature 1.
    """

    ids: list[int]
    log_probabilities: list[float]
    ended: Ended
