"""AdamW against torch's, SGDDecay against its formula, and the parameter groups."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.gradients import parameters_of, set_gradients
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.testing import assert_close

from lit_lm.model.config import TransformerConfig
from lit_lm.model.transformer import Transformer
from lit_lm.optim import AdamW, SGDDecay, parameter_groups

SHAPES: list[tuple[int, ...]] = [(4, 3), (5,), (), (2, 3, 2)]


def parameters() -> list[nn.Parameter]:
    return parameters_of(SHAPES)


def in_groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [
        {"params": params[:2], "weight_decay": 0.3},
        {"params": params[2:], "lr": 0.02, "weight_decay": 0.0, "betas": (0.5, 0.7)},
    ]


def together(params: list[nn.Parameter]) -> list[nn.Parameter]:
    return params


@pytest.mark.parametrize("arrange", [together, in_groups])
@pytest.mark.parametrize(
    "options",
    [
        {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1},
        {"lr": 1e-3, "betas": (0.0, 0.999), "eps": 1e-3, "weight_decay": 0.0},
    ],
    ids=str,
)
def test_adamw_matches_torch_for_100_steps_with_changing_rates(
    arrange: Callable[[list[nn.Parameter]], Any], options: dict[str, Any]
) -> None:
    ours, theirs = parameters(), parameters()
    optimizers = AdamW(arrange(ours), **options), torch.optim.AdamW(arrange(theirs), **options)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    assert rates[0] == rates[1]
    for step in range(100):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        for optimizer in optimizers:
            for group, rate in zip(optimizer.param_groups, rates[0], strict=True):
                group["lr"] = rate * (1 + math.sin(step))
            optimizer.step()
    assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    assert not torch.allclose(ours[0], parameters()[0], atol=0.01)


def test_adamw_defaults_differ_from_torch_only_in_beta2_and_weight_decay() -> None:
    ours, theirs = parameters(), parameters()
    optimizers = AdamW(ours), torch.optim.AdamW(theirs, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(5):
        for params, optimizer in zip((ours, theirs), optimizers, strict=True):
            set_gradients(params, step)
            optimizer.step()
    assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("missing", [range(1), range(3), range(2, 5)], ids=str)
def test_adamw_counts_the_updates_of_each_parameter_like_torch(missing: range) -> None:
    ours, theirs = parameters(), parameters()
    optimizers = AdamW(ours), torch.optim.AdamW(theirs, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(10):
        for params, optimizer in zip((ours, theirs), optimizers, strict=True):
            set_gradients(params, step)
            if step in missing:
                params[1].grad = None
            optimizer.step()
    assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


both = pytest.mark.parametrize("optimizer_class", [AdamW, SGDDecay])


@both
def test_a_restored_optimizer_continues_exactly(optimizer_class: type[Optimizer]) -> None:
    def steps(params: list[nn.Parameter], optimizer: Optimizer, numbers: range) -> None:
        for step in numbers:
            set_gradients(params, step)
            optimizer.step()

    straight = parameters()
    optimizer = optimizer_class(straight, lr=0.1)
    steps(straight, optimizer, range(5))
    resumed = [nn.Parameter(p.detach().clone()) for p in straight]
    state = copy.deepcopy(optimizer.state_dict())
    steps(straight, optimizer, range(5, 10))

    optimizer = optimizer_class(resumed, lr=0.7)
    optimizer.load_state_dict(state)
    steps(resumed, optimizer, range(5, 10))
    assert_close(resumed, straight, rtol=0, atol=0)


@both
def test_parameters_without_a_gradient_are_unchanged(optimizer_class: type[Optimizer]) -> None:
    params = parameters()
    set_gradients(params, 0)
    params[0].grad = None
    optimizer = optimizer_class([{"params": params[:1]}, {"params": params[1:]}], weight_decay=0.5)
    optimizer.step()
    before = parameters()
    assert torch.equal(params[0], before[0])
    assert [torch.equal(*pair) for pair in zip(params, before, strict=True)] == [True, False, False, False]
    assert params[0] not in optimizer.state


@both
def test_a_closure_is_called_with_gradients_enabled_and_its_loss_is_returned(optimizer_class: type[Optimizer]) -> None:
    parameter = nn.Parameter(torch.tensor([2.0]))
    optimizer = optimizer_class([parameter])

    def closure() -> Tensor:
        loss = parameter.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert optimizer.step(closure) == 4.0
    assert parameter.item() < 2.0


@both
@pytest.mark.parametrize("name", ["lr", "weight_decay"])
def test_negative_rates_are_rejected(optimizer_class: type[Optimizer], name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is -0.1; it must be at least 0$"):
        optimizer_class(parameters(), **{name: -0.1})


@pytest.mark.parametrize("betas", [(1.0, 0.9), (0.9, -0.1), (0.9, 1.0)])
def test_betas_out_of_range_are_rejected(betas: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"^betas are \(.*\); each must be at least 0 and less than 1$"):
        AdamW(parameters(), betas=betas)


@pytest.mark.parametrize("tied", [False, True])
def test_parameter_groups_contain_each_parameter_once_and_decay_only_matrices(tied: bool) -> None:
    config = TransformerConfig(
        vocab_size=20, context_length=4, d_model=8, num_layers=2, num_heads=2, bias=True, tie_embeddings=tied
    )
    model = Transformer(config)
    decayed, exempt = parameter_groups(model)
    assert "weight_decay" not in decayed
    assert exempt["weight_decay"] == 0
    names = {id(p): name for name, p in model.named_parameters()}
    grouped = [names[id(p)] for p in decayed["params"] + exempt["params"]]
    assert sorted(grouped) == sorted(names.values())
    assert {names[id(p)] for p in exempt["params"]} == {n for n in names.values() if "norm" in n or "bias" in n}


def test_parameter_groups_leave_out_frozen_parameters_and_empty_groups() -> None:
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    (group,) = parameter_groups(layer)
    assert [id(p) for p in group["params"]] == [id(layer.weight)]
