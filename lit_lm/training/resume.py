"""What a resumed run takes over from a checkpoint, and what follows from the number of steps instead.

A run is a function of its config and seed: the windows of step s, its dropout and its samples follow from s alone. So
the state of a run after s steps is the weights, the optimizer's averages and s. The options of the optimizer and the
schedule are those of the config, which may have changed since; the Trainer's counters are computed from s.
"""

import copy
import warnings
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_lm.optim import Schedule


def tag_state(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer state with the name of its class. For `Optimizer.register_state_dict_post_hook`."""
    return state | {"class": _name(optimizer)}


def keep_options(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A saved optimizer state, but with the options of `optimizer` itself, which the config may have changed since.

    The state of another optimizer is of no use: then the averages start anew, and that is reported. The present
    learning rate is the schedule's to find. For `Optimizer.register_load_state_dict_pre_hook`.
    """
    saved_groups, own_groups = state["param_groups"], optimizer.param_groups
    sizes = [[len(group["params"]) for group in groups] for groups in (saved_groups, own_groups)]
    if state.get("class", _name(optimizer)) != _name(optimizer) or sizes[0] != sizes[1]:
        _print(
            f"the checkpoint has the state of {state.get('class', 'another optimizer')}: {_name(optimizer)} starts anew"
        )
        return optimizer.state_dict()
    groups = [
        {**saved, **{name: value for name, value in own.items() if name != "params"}}
        for saved, own in zip(saved_groups, own_groups, strict=True)
    ]
    return {**state, "param_groups": groups}


def go_to_step(scheduler: LRScheduler, step: int) -> None:
    """Bring a new schedule to where it is after `step` updates.

    Its saved state would bring back the options that it had then, over those of the config.
    """
    if isinstance(scheduler, Schedule):
        scheduler.load_state_dict({"last_epoch": step})
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.* before")
        for _ in range(step):
            scheduler.step()


def progress_after(steps: int, accumulation: int, fresh: dict[str, Any]) -> dict[str, Any]:
    """State of the Trainer's fit loop after `steps` steps and the validation that belongs to the last of them.

    Args:
        steps: Optimizer steps.
        accumulation: Micro-batches of a device per step.
        fresh: State of a fit loop that has not begun.
    """
    state = copy.deepcopy(fresh)
    state["epoch_loop.state_dict"]["_batches_that_stepped"] = steps
    _count(state["epoch_loop.batch_progress"], steps * accumulation)
    _count(state["epoch_loop.scheduler_progress"], steps)
    _count(state["epoch_loop.automatic_optimization.optim_progress"], steps)
    for progress in (state["epoch_progress"]["total"], state["epoch_progress"]["current"]):
        progress.update(ready=1, started=1)  # the whole run is one epoch of the Trainer, which has begun
    return state


def _name(optimizer: Optimizer) -> str:
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


@rank_zero_only
def _print(line: str) -> None:
    print(line, flush=True)


def _count(progress: dict[str, Any], number: int) -> None:
    """Set all counters below `progress`."""
    for name, value in progress.items():
        if isinstance(value, dict):
            _count(value, number)
        elif not isinstance(value, bool):
            progress[name] = number
