"""Learning-rate schedules: pure functions of the step, and the thin classes through which a config names them."""

import math
from abc import ABC, abstractmethod
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def warmup_cosine(step: int, *, warmup_steps: int, max_steps: int, min_ratio: float) -> float:
    """Factor on the peak learning rate for update number `step`, counted from 0.

    Rises linearly to 1 at update `warmup_steps`, then falls along half a cosine to `min_ratio` at `max_steps`, and
    stays there.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_stable_decay(
    step: int, *, warmup_steps: int, max_steps: int, decay_fraction: float, min_ratio: float
) -> float:
    """Factor on the peak learning rate for update number `step`, counted from 0.

    Rises linearly to 1 at update `warmup_steps` and stays there; in the last `decay_fraction` of the `max_steps` it
    falls linearly to `min_ratio` at `max_steps`, and stays there.
    """
    left = max(0.0, (max_steps - step) / max(1.0, decay_fraction * max_steps))
    return min(1.0, (step + 1) / (warmup_steps + 1), min_ratio + (1 - min_ratio) * left)


class Schedule(LRScheduler, ABC):
    """A factor on the peak learning rates that is a function of the step and of the length of the run."""

    def __init__(self, optimizer: Optimizer, warmup_steps: int, min_ratio: float, max_steps: int | None) -> None:
        """
        Args:
            optimizer: Its learning rates are the peak.
            warmup_steps: Updates until the peak is reached.
            min_ratio: The floor, as a share of the peak.
            max_steps: Updates until the floor is reached; null: to be set before the first.

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
        """The factor of update number `step`, from 0, of a run of `max_steps`."""

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """The learning rate of each parameter group at the present step."""
        # last_epoch is torch's name for the number of steps taken
        factor = self.factor(self.last_epoch, 1 if self.max_steps is None else self.max_steps)
        return [float(base) * factor for base in self.base_lrs]

    def state_dict(self) -> dict[str, int]:
        """The step alone: everything else comes from the config, which may have changed since."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to the step of `state_dict` and set the learning rates of that step."""
        super().load_state_dict(state_dict)
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = lr


class WarmupCosine(Schedule):
    """Linear warmup, then half a cosine down to a floor."""

    def __init__(
        self, optimizer: Optimizer, warmup_steps: int = 100, min_ratio: float = 0.1, max_steps: int | None = None
    ) -> None:
        """
        Args:
            optimizer: Its learning rates are the peak.
            warmup_steps: Updates until the peak is reached.
            min_ratio: The floor, as a share of the peak.
            max_steps: Updates until the floor is reached; null: as many as the run has.

        Raises:
            ValueError: if a value is out of range.
        """
        super().__init__(optimizer, warmup_steps, min_ratio, max_steps)

    def factor(self, step: int, max_steps: int) -> float:
        """As `warmup_cosine` gives it."""
        return warmup_cosine(step, warmup_steps=self.warmup_steps, max_steps=max_steps, min_ratio=self.min_ratio)


class WarmupStableDecay(Schedule):
    """Linear warmup, then the peak, then a straight line down to a floor at the end of the run."""

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
            optimizer: Its learning rates are the peak.
            warmup_steps: Updates until the peak is reached.
            decay_fraction: Share of the run, its last, in which the rate falls.
            min_ratio: The floor, as a share of the peak.
            max_steps: Updates until the floor is reached; null: as many as the run has.

        Raises:
            ValueError: if a value is out of range.
        """
        if not 0 <= decay_fraction <= 1:
            raise ValueError(f"decay_fraction is {decay_fraction}; it must be between 0 and 1")
        self.decay_fraction = decay_fraction
        super().__init__(optimizer, warmup_steps, min_ratio, max_steps)

    def factor(self, step: int, max_steps: int) -> float:
        """As `warmup_stable_decay` gives it."""
        return warmup_stable_decay(
            step,
            warmup_steps=self.warmup_steps,
            max_steps=max_steps,
            decay_fraction=self.decay_fraction,
            min_ratio=self.min_ratio,
        )
