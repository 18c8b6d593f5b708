"""Compute-optimal size of a model."""

import math

TOKENS_PER_PARAMETER = 20
"""The rule of thumb of Hoffmann et al. 2022 (table 3; 1.9e19 FLOPs: 0.4 B parameters, 8 B tokens)."""


def compute_optimal(flops: float) -> tuple[float, float]:
    """Parameters and tokens of the model with the lowest loss for a budget of FLOPs.

    With 6 FLOPs per parameter and token, and 20 tokens per parameter.
    """
    parameters = math.sqrt(flops / (6 * TOKENS_PER_PARAMETER))
    return parameters, TOKENS_PER_PARAMETER * parameters
