"""Learning-rate schedules: pure functions of the step, and the thin classes through which a config names them."""

import math
import warnings
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


class WarmupCosine(LRScheduler):
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
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps is {warmup_steps}; it must be at least 0")
        if not 0 <= min_ratio <= 1:
            raise ValueError(f"min_ratio is {min_ratio}; it must be between 0 and 1")
        self.warmup_steps = warmup_steps
        self.min_ratio = min_ratio
        self.max_steps = max_steps
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """The learning rate of each parameter group at the present step."""
        factor = warmup_cosine(
            self.last_epoch,  # torch's name for the number of steps taken
            warmup_steps=self.warmup_steps,
            max_steps=1 if self.max_steps is None else self.max_steps,
            min_ratio=self.min_ratio,
        )
        return [float(base) * factor for base in self.base_lrs]

    def state_dict(self) -> dict[str, int]:
        """The step alone: everything else comes from the config, which may have changed since."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to the step of `state_dict` and set the learning rates of that step."""
        super().load_state_dict(state_dict)
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = lr


def go_to_step(scheduler: LRScheduler, step: int) -> None:
    """Bring a new schedule to where it is after `step` updates.

    Its saved state would bring back the options that it had then, over those of the config.
    """
    if isinstance(scheduler, WarmupCosine):
        scheduler.load_state_dict({"last_epoch": step})
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.* before")
        for _ in range(step):
            scheduler.step()
