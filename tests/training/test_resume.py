"""The state of an optimizer in a checkpoint is loaded if it fits, and discarded or refused in words if it does not."""

import copy
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR

from lit_lm.checkpoint import TRUSTED_CLASSES
from lit_lm.optim import parameter_groups
from lit_lm.training.resume import keep_options, tag_state

NAMES = sorted(TRUSTED_CLASSES["optimizer"])


def net(name: str) -> nn.Module:
    if name == "torch.optim.Muon":  # takes matrices only
        return nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def take_step(model: nn.Module, optimizer: Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()


def made(model: nn.Module, name: str, **options: Any) -> Optimizer:
    """An optimizer with LitLM's hooks, and a schedule, which replaces its method `step`."""
    module, _, kind = name.rpartition(".")
    optimizer: Optimizer = getattr(import_module(module), kind)(parameter_groups(model, []), **options)
    optimizer.register_state_dict_post_hook(tag_state)
    optimizer.register_load_state_dict_pre_hook(keep_options)
    ConstantLR(optimizer, factor=1.0)
    return optimizer


def trained(name: str, **options: Any) -> tuple[nn.Module, Optimizer]:
    model = net(name)
    optimizer = made(model, name, **options)
    for _ in range(3):
        take_step(model, optimizer)
    return model, optimizer


def tensors(state: dict[int, Any]) -> dict[tuple[int, str], Tensor]:
    return {
        (number, name): torch.as_tensor(value)
        for number, values in state.items()
        for name, value in values.items()
        if value is not None
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_own_state_is_loaded_and_leaves_parameters_and_saved_state_alone(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, whole = trained(name)
    saved = copy.deepcopy(whole.state_dict())
    resumed_model = copy.deepcopy(model)
    resumed = made(resumed_model, name)
    resumed.load_state_dict(copy.deepcopy(saved))
    torch.testing.assert_close(resumed_model.state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(tensors(resumed.state_dict()["state"]), tensors(saved["state"]), rtol=0, atol=0)
    for each in ((model, whole), (resumed_model, resumed)):
        take_step(*each)
    torch.testing.assert_close(resumed_model.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("tagged", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_the_state_of_another_optimizer_is_replaced_by_a_fresh_one_in_one_line(
    name: str, tagged: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    for other in NAMES:
        saved = trained(other)[1].state_dict()
        if other == name or (not tagged and saved.pop("class") is None):
            continue
        model = net(name)
        optimizer = made(model, name)
        optimizer.load_state_dict(saved)
        if tagged:
            line, end = capsys.readouterr().out.split("\n")
            assert line.endswith("starts from scratch")
            assert not end
            assert all(
                not value.any() for value in tensors(optimizer.state_dict()["state"]).values()
            )  # Adagrad's zeros
        take_step(model, optimizer)
        assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("torch.optim.AdamW", {}, {"amsgrad": True}),
        ("torch.optim.Adam", {}, {"amsgrad": True}),
        ("torch.optim.RMSprop", {}, {"centered": True}),
        ("torch.optim.RMSprop", {}, {"momentum": 0.9}),
        ("torch.optim.SGD", {}, {"momentum": 0.9}),
    ],
)
def test_a_state_that_changed_options_cannot_use_is_replaced_in_one_line(
    name: str, before: dict[str, Any], after: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    model = net(name)
    optimizer = made(model, name, **after)
    optimizer.load_state_dict(trained(name, **before)[1].state_dict())
    take_step(model, optimizer)
    assert capsys.readouterr().out.count("\n") <= 1
    optimizer = made(model, name, **before)
    optimizer.load_state_dict(trained(name, **after)[1].state_dict())  # what it does not need is in no one's way
    take_step(model, optimizer)


WRONG = [None, True, "a", [1.0], {}, torch.zeros(5, 7), torch.tensor(1j), torch.zeros(4, 3, dtype=torch.int32)]


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_state_is_refused(name: str) -> None:
    saved = trained(name)[1].state_dict()
    used = tensors(saved["state"])
    for number, key in used:
        for value in (*WRONG, -1, 2**70, float("nan"), "missing"):
            damaged = copy.deepcopy(saved)
            damaged["state"][number][key] = value
            if isinstance(value, str) and value == "missing":
                del damaged["state"][number][key]
                if not damaged["state"][number]:  # as of a parameter that never had a gradient
                    continue
            model = net(name)
            optimizer = made(model, name)
            with pytest.raises(
                ValueError, match=rf"^the checkpoint's state of .* is damaged: parameter {number} has no"
            ):
                optimizer.load_state_dict(damaged)
    assert used or name == "torch.optim.SGD"  # which has no averages without momentum


def test_a_parameter_without_a_state_starts_afresh() -> None:
    saved = trained("lit_lm.optim.Muon")[1].state_dict()
    del saved["state"][0]
    model = net("lit_lm.optim.Muon")
    optimizer = made(model, "lit_lm.optim.Muon")
    optimizer.load_state_dict(saved)
    take_step(model, optimizer)
