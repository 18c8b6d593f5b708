"""Parameters and gradients without a model."""

from collections.abc import Sequence

import torch
from torch import nn


def parameters_of(shapes: Sequence[tuple[int, ...]]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def set_gradients(params: list[nn.Parameter], step: int) -> None:
    """Set gradients that depend only on the step, with very different magnitudes."""
    generator = torch.Generator().manual_seed(step)
    for number, parameter in enumerate(params):
        parameter.grad = 10.0 ** (number - 2) * torch.randn(parameter.shape, generator=generator)
