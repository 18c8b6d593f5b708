"""What generation gives."""

from dataclasses import dataclass
from typing import Literal

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
