"""Clipping for optimizers that do not clip in their update."""

import pytest
import torch

from lit_lm.optim.fused import clip_or_skip
from lit_lm.optim.sharded import total_norm


@pytest.mark.parametrize("max_norm", [0.1, 1e3])
def test_gradients_are_clipped_as_torch_clips_them(max_norm: float) -> None:
    parameters = [torch.nn.Parameter(torch.zeros(3, 4)), torch.nn.Parameter(torch.zeros(5))]
    gradients = [torch.randn_like(parameter) for parameter in parameters]
    found = []
    for clip in (
        lambda norm: clip_or_skip(torch.optim.SGD(parameters, lr=1.0), norm, max_norm, torch.tensor(True)),
        lambda _: torch.nn.utils.clip_grad_norm_(parameters, max_norm),
    ):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        clip(total_norm([parameter.grad for parameter in parameters if parameter.grad is not None]))
        found.append([parameter.grad for parameter in parameters])
    torch.testing.assert_close(*found, rtol=0, atol=0)
