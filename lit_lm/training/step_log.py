"""Loss and gradient norm of each step, left on the device until they are needed, and the count of skipped steps."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor


class StepTaken(NamedTuple):
    """Metrics of an optimizer step."""

    step: int
    """Step number, from 1."""
    loss: float
    """Mean over the micro-batches and devices of the step."""
    gradient_norm: float
    """Gradient norm before clipping."""


class StepLog:
    """Collects steps on the device and reads them together: reading one makes the host wait for the device."""

    def __init__(self, max_skipped: int) -> None:
        """
        Args:
            max_skipped: Number of skipped steps in a row after which `read` raises.
        """
        self.max_skipped = max_skipped
        self.skipped = self.skipped_in_a_row = 0
        self.last_read: list[StepTaken] = []
        """Steps that the last `read` read."""
        self._unread: list[Tensor] = []
        """Loss and gradient norm, shape (2), of each step since then."""

    def add(self, loss: Tensor, gradient_norm: Tensor) -> None:
        """Add a step, without waiting for the device."""
        self._unread.append(torch.stack([loss.float(), gradient_norm]))

    @property
    def last_loss(self) -> float:
        """Loss of the last step; NaN before the first. Waits for the device."""
        if self._unread:
            return float(self._unread[-1][0])
        return self.last_read[-1].loss if self.last_read else math.nan

    def read(self, last: int, describe: Callable[[int], str]) -> Iterator[str]:
        """Copy the unread steps, up to step `last`, to the host; yields a message for each skipped step.

        Args:
            last: Number of the last step.
            describe: Returns what a message adds about a step.

        Raises:
            ValueError: if `max_skipped` steps in a row were skipped.
        """
        if not self._unread:
            return
        first = last - len(self._unread) + 1
        device = self._unread[-1].device  # restored ones are on the host
        rows = torch.stack([row.to(device) for row in self._unread]).tolist()
        self._unread = []
        self.last_read = [StepTaken(first + number, *row) for number, row in enumerate(rows)]
        for taken in self.last_read:
            if math.isfinite(taken.loss + taken.gradient_norm):
                self.skipped_in_a_row = 0
                continue
            self.skipped += 1
            self.skipped_in_a_row += 1
            message = f"step {taken.step}: loss {taken.loss}, gradient norm {taken.gradient_norm}{describe(taken.step)}"
            if self.skipped_in_a_row >= self.max_skipped:
                raise ValueError(
                    f"{message}\nskipped {self.skipped_in_a_row} steps in a row "
                    f"(model.max_skipped_steps is {self.max_skipped}); stopping"
                )
            yield f"{message}; the step is skipped"

    def state(self) -> dict[str, Any]:
        """Entries of a checkpoint."""
        return {
            "skipped_steps": [self.skipped, self.skipped_in_a_row],
            "unread_steps": [row.tolist() for row in self._unread],
        }

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Restore the entries that `state` made."""
        self.skipped, self.skipped_in_a_row = checkpoint["skipped_steps"]
        self._unread = [torch.tensor(row) for row in checkpoint["unread_steps"]]
