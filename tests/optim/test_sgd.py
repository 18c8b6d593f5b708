"""SGDDecay against torch's SGD with a schedule."""

import math
from typing import Any

import torch
from helpers.gradients import parameters_of, set_gradients
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.testing import assert_close

from lit_lm.optim import SGDDecay

SHAPES: list[tuple[int, ...]] = [(4, 3), (5,), (), (2, 3, 2)]


def in_groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": params[:2], "weight_decay": 0.3}, {"params": params[2:], "lr": 0.02}]


def torch_sgd(params: Any, **options: Any) -> tuple[torch.optim.SGD, LambdaLR]:
    """SGD with the learning rate lr / sqrt(t + 1) at update t."""
    optimizer = torch.optim.SGD(params, **options)
    return optimizer, LambdaLR(optimizer, lambda t: 1 / math.sqrt(t + 1))


def test_sgd_decay_matches_torch_with_decaying_rates() -> None:
    ours, theirs = parameters_of(SHAPES), parameters_of(SHAPES)
    optimizer = SGDDecay(in_groups(ours), lr=0.1)
    expected, schedule = torch_sgd(in_groups(theirs), lr=0.1)
    for step in range(20):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        optimizer.step()
        expected.step()
        schedule.step()
    assert_close(ours, theirs)
    assert not torch.allclose(ours[0], parameters_of(SHAPES)[0], atol=0.01)


def test_the_rate_of_a_parameter_depends_on_its_own_number_of_updates() -> None:
    """As if each parameter had its own optimizer and schedule."""
    ours, theirs = parameters_of(SHAPES), parameters_of(SHAPES)
    optimizer = SGDDecay(ours, lr=0.1, weight_decay=0.2)
    pairs = [torch_sgd([parameter], lr=0.1, weight_decay=0.2) for parameter in theirs]
    for step in range(12):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        for number, (own, (expected, schedule)) in enumerate(zip(ours, pairs, strict=True)):
            if step % (number + 1):
                own.grad = None
                continue
            expected.step()
            schedule.step()
        optimizer.step()
    assert_close(ours, theirs)
