"""Restoring a run from a checkpoint.

A run is a function of its config and seed: the windows, dropout and samples of step s depend on s alone. So the state
after s steps is the weights, the optimizer's averages and s. The options of optimizer and schedule come from the
config, which may have changed since; the Trainer's counters are computed from s.
"""

import copy
import math
import warnings
from collections import defaultdict
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_lm.optim import Schedule


def tag_state(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Add the class name of the optimizer to its state. For `Optimizer.register_state_dict_post_hook`."""
    return state | {"class": _name(optimizer)}


def keep_options(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Replace the options in a saved optimizer state with those of `optimizer`, which the config may have changed.

    The state of a different optimizer, or one that the changed options cannot use, is discarded, with a message. The
    learning rate is set by the schedule. For `Optimizer.register_load_state_dict_pre_hook`.

    Raises:
        ValueError: if the state does not fit the optimizer, although no option has changed.
    """
    saved_groups, own_groups = state["param_groups"], optimizer.param_groups
    sizes = [[len(group["params"]) for group in groups] for groups in (saved_groups, own_groups)]
    name = _name(optimizer)
    if state.get("class", name) != name or sizes[0] != sizes[1]:
        _print(f"the checkpoint has the state of {state.get('class', 'another optimizer')}; {name} starts from scratch")
        return optimizer.state_dict()
    if problem := _misfit(optimizer, state):
        if all(_options(saved) == _options(own) for saved, own in zip(saved_groups, own_groups, strict=True)):
            raise ValueError(f"the checkpoint's state of {name} is damaged: {problem}")
        _print(f"{name} has other options than in the checkpoint ({problem}); it starts from scratch")
        return optimizer.state_dict()
    groups = [{**own, "params": saved["params"]} for saved, own in zip(saved_groups, own_groups, strict=True)]
    return {**state, "param_groups": groups}


def _misfit(optimizer: Optimizer, state: dict[str, Any]) -> str | None:
    """Why the averages in a saved state are not those of `optimizer`, with groups of the same sizes; None if they are.

    Not known for the user's own optimizers, whose steps may have other effects.
    """
    if not _name(optimizer).startswith(("lit_lm.optim.", "torch.optim.")):
        return None
    for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True):
        fresh: dict[torch.Size, dict[str, Any]] = {}
        for number, parameter in zip(saved["params"], own["params"], strict=True):
            if values := state["state"].get(number):
                if parameter.shape not in fresh:
                    fresh[parameter.shape] = _state_after_a_step(optimizer, own, parameter)
                for name, value in fresh[parameter.shape].items():
                    if name not in values or not _is_like(values[name], value):
                        return f"parameter {number} has no {name} that fits"
    return None


def _state_after_a_step(optimizer: Optimizer, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
    """State of a parameter of `group` after a step of a copy of `optimizer` on a copy of the parameter."""
    trial = object.__new__(type(optimizer))  # copy.copy would keep nothing but state and groups
    copied = torch.zeros_like(parameter, requires_grad=True)
    copied.grad = torch.zeros_like(parameter)
    state = defaultdict(dict, {copied: copy.deepcopy(optimizer.state.get(parameter, {}))})  # Adagrad's is not empty
    vars(trial).update({**vars(optimizer), "param_groups": [{**group, "params": [copied]}], "state": state})
    type(optimizer).step(trial)  # the schedule has replaced the method of the instance by one of the original
    fresh: dict[str, Any] = state[copied]
    return fresh


def _is_like(value: Any, fresh: Any) -> bool:
    """Whether a saved value can stand for a fresh one: of its kind and shape and, if it is one number, not negative."""
    if isinstance(fresh, Tensor):
        if not isinstance(value, Tensor) or value.shape != fresh.shape or not value.is_floating_point():
            return False
        return value.ndim > 0 or 0 <= value.item() < math.inf
    return fresh is None or (type(value) is type(fresh) and 0 <= value < 2**63)


def _options(group: dict[str, Any]) -> dict[str, Any]:
    """Options of a parameter group other than the learning rate."""
    return {name: value for name, value in group.items() if name not in ("params", "lr", "initial_lr")}


def go_to_step(scheduler: LRScheduler, step: int) -> None:
    """Advance a new schedule by `step` updates.

    Loading its saved state would also restore its old options, over those of the config.
    """
    if isinstance(scheduler, Schedule):
        scheduler.load_state_dict({"last_epoch": step})
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.* before")
        for _ in range(step):
            scheduler.step()


def progress_after(steps: int, accumulation: int, fresh: dict[str, Any]) -> dict[str, Any]:
    """State of the Trainer's fit loop after `steps` steps and the validation that follows the last one.

    Args:
        steps: Optimizer steps.
        accumulation: Micro-batches per device and step.
        fresh: State of a new fit loop.
    """
    state = copy.deepcopy(fresh)
    state["epoch_loop.state_dict"]["_batches_that_stepped"] = steps
    _count(state["epoch_loop.batch_progress"], steps * accumulation)
    _count(state["epoch_loop.scheduler_progress"], steps)
    _count(state["epoch_loop.automatic_optimization.optim_progress"], steps)
    for progress in (state["epoch_progress"]["total"], state["epoch_progress"]["current"]):
        progress.update(ready=1, started=1)  # the whole run is one epoch of the Trainer
    return state


def _name(optimizer: Optimizer) -> str:
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


@rank_zero_only
def _print(line: str) -> None:
    print(line, flush=True)


def _count(progress: dict[str, Any], number: int) -> None:
    """Set all counters in `progress` to `number`."""
    for name, value in progress.items():
        if isinstance(value, dict):
            _count(value, number)
        elif not isinstance(value, bool):
            progress[name] = number
