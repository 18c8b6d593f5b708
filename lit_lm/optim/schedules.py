"""Learning-rate schedules: pure functions of the step, and thin classes to name in a config."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau


def warmup_cosine(step: int, *, warmup_steps: int, max_steps: int, min_ratio: float) -> float:
    """Return the factor on the peak learning rate for update `step`, counted from 0.

    It rises linearly to 1 at update `warmup_steps`, then follows half a cosine down to `min_ratio` at `max_steps`, and
    stays there.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_stable_decay(
    step: int, *, warmup_steps: int, max_steps: int, decay_fraction: float, min_ratio: float
) -> float:
    """Return the factor on the peak learning rate for update `step`, counted from 0.

    It rises linearly to 1 at update `warmup_steps` and stays there. In the last `decay_fraction` of `max_steps` it
    falls linearly to `min_ratio`, and stays there.
    """
    left = max(0.0, (max_steps - step) / max(1.0, decay_fraction * max_steps))
    return min(1.0, (step + 1) / (warmup_steps + 1), min_ratio + (1 - min_ratio) * left)


class Schedule(LRScheduler, ABC):
    """A factor on the peak learning rates that depends on the step and the length of the run."""

    def __init__(self, optimizer: Optimizer, warmup_steps: int, min_ratio: float, max_steps: int | None) -> None:
        """
        Args:
            optimizer: Optimizer whose learning rates are the peak.
            warmup_steps: Number of updates until the peak.
            min_ratio: Final learning rate as a fraction of the peak.
            max_steps: Number of updates until the final learning rate; null: set before the first update.

        Raises:
            ValueError: if a value is out of range.
        """
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps is {warmup_steps}; it must be at least 0")
        if not 0 <= min_ratio <= 1:
            raise ValueError(f"min_ratio is {min_ratio}; it must be between 0 and 1")
        self.warmup_steps = warmup_steps
        self.min_ratio = min_ratio
        self.max_steps = max_steps
        super().__init__(optimizer)

    @abstractmethod
    def factor(self, step: int, max_steps: int) -> float:
        """Return the factor for update `step`, counted from 0, in a run of `max_steps` updates."""

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """Return the learning rate of each parameter group at the current step."""
        # last_epoch is torch's name for the number of steps taken
        factor = self.factor(self.last_epoch, 1 if self.max_steps is None else self.max_steps)
        return [float(base) * factor for base in self.base_lrs]

    def state_dict(self) -> dict[str, int]:
        """Return only the step: everything else comes from the config, which may have changed."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step and set its learning rates."""
        super().load_state_dict(state_dict)
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = lr


class WarmupCosine(Schedule):
    """Linear warmup, then half a cosine down to `min_ratio` of the peak."""

    def __init__(
        self, optimizer: Optimizer, warmup_steps: int = 100, min_ratio: float = 0.1, max_steps: int | None = None
    ) -> None:
        """
        Args:
            optimizer: Optimizer whose learning rates are the peak.
            warmup_steps: Number of updates until the peak.
            min_ratio: Final learning rate as a fraction of the peak.
            max_steps: Number of updates until the final learning rate; null: length of the run.

        Raises:
            ValueError: if a value is out of range.
        """
        super().__init__(optimizer, warmup_steps, min_ratio, max_steps)

    def factor(self, step: int, max_steps: int) -> float:
        """Return `warmup_cosine` for this step."""
        return warmup_cosine(step, warmup_steps=self.warmup_steps, max_steps=max_steps, min_ratio=self.min_ratio)


class WarmupStableDecay(Schedule):
    """Linear warmup, constant peak, then linear decay to `min_ratio` of the peak at the end of the run."""

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int = 50,
        decay_fraction: float = 0.5,
        min_ratio: float = 0.0,
        max_steps: int | None = None,
    ) -> None:
        """
        Args:
            optimizer: Optimizer whose learning rates are the peak.
            warmup_steps: Number of updates until the peak.
            decay_fraction: Last fraction of the run, in which the learning rate falls.
            min_ratio: Final learning rate as a fraction of the peak.
            max_steps: Number of updates until the final learning rate; null: length of the run.

        Raises:
            ValueError: if a value is out of range.
        """
        if not 0 <= decay_fraction <= 1:
            raise ValueError(f"decay_fraction is {decay_fraction}; it must be between 0 and 1")
        self.decay_fraction = decay_fraction
        super().__init__(optimizer, warmup_steps, min_ratio, max_steps)

    def factor(self, step: int, max_steps: int) -> float:
        """Return `warmup_stable_decay` for this step."""
        return warmup_stable_decay(
            step,
            warmup_steps=self.warmup_steps,
            max_steps=max_steps,
            decay_fraction=self.decay_fraction,
            min_ratio=self.min_ratio,
        )


def fit_to_run(schedule: LRScheduler, steps: Callable[[], float]) -> None:
    """Set the length of a Schedule that has none, and check that of other schedules.

    Args:
        schedule: Any learning-rate schedule that depends only on the step.
        steps: Returns the number of updates of the run; infinite if it is endless.

    Raises:
        ValueError: if the schedule needs a metric, ends before the run, or needs a length in an endless run.
    """
    name = type(schedule).__name__
    if isinstance(schedule, ReduceLROnPlateau):
        raise ValueError(f"{name} needs a metric, but schedules depend only on the step; use another")
    if isinstance(schedule, Schedule) and schedule.max_steps is None:
        if not isinstance(max_steps := steps(), int):
            raise ValueError(f"{name} needs the number of steps: set trainer.max_steps")
        schedule.max_steps = max_steps
    total = getattr(schedule, "total_steps", None)  # of OneCycleLR
    if total is not None and total < (number := steps()):
        raise ValueError(f"{name} has total_steps {total}, but the run has {number} steps; set it to {number}")
