"""Restoring a run from a checkpoint.

A run is a function of its config and seed: the windows, dropout and samples of step s depend on s alone. So the state
after s steps is the weights, the optimizer's averages and s. The options of optimizer and schedule come from the
config, which may have changed since; the Trainer's counters are computed from s.
"""

import copy
import warnings
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_lm.optim import Schedule


def tag_state(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Add the class name of the optimizer to its state. For `Optimizer.register_state_dict_post_hook`."""
    return state | {"class": _name(optimizer)}


def keep_options(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Replace the options in a saved optimizer state with those of `optimizer`, which the config may have changed.

    The state of a different optimizer is discarded, with a message. The learning rate is set by the schedule. For
    `Optimizer.register_load_state_dict_pre_hook`.
    """
    saved_groups, own_groups = state["param_groups"], optimizer.param_groups
    sizes = [[len(group["params"]) for group in groups] for groups in (saved_groups, own_groups)]
    if state.get("class", _name(optimizer)) != _name(optimizer) or sizes[0] != sizes[1]:
        saved = state.get("class", "another optimizer")
        _print(f"the checkpoint has the state of {saved}; {_name(optimizer)} starts from scratch")
        return optimizer.state_dict()
    groups = [
        {**saved, **{name: value for name, value in own.items() if name != "params"}}
        for saved, own in zip(saved_groups, own_groups, strict=True)
    ]
    return {**state, "param_groups": groups}


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
