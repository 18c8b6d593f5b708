"""Detection of loss spikes."""

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_lm.training.loggers import log_text
from lit_lm.training.module import LitLM


class LossSpikes(Callback):
    """Reports a loss more than SPREAD standard deviations above its running mean, and the windows of its step.

    Mean and deviation are exponential averages over about the last 50 steps.
    """

    DECAY = 0.98
    SPREAD = 6.0
    AFTER = 50

    def __init__(self) -> None:
        self.step, self.mean, self.variance = 0, 0.0, 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, LitLM)
        for taken in pl_module.steps.last_read:
            if taken.step > self.step and math.isfinite(taken.loss):
                self._follow(trainer, pl_module, taken.step, taken.loss)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "mean": self.mean, "variance": self.variance}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.step, self.mean, self.variance = state_dict["step"], state_dict["mean"], state_dict["variance"]

    def _follow(self, trainer: Trainer, module: LitLM, step: int, loss: float) -> None:
        self.step = step
        if step > self.AFTER and loss > self.mean + self.SPREAD * math.sqrt(self.variance):
            self._report(trainer, module, loss)
        share = max(1 - self.DECAY, 1 / step)  # a plain average at first
        self.variance = (1 - share) * (self.variance + share * (loss - self.mean) ** 2)
        self.mean += share * (loss - self.mean)

    def _report(self, trainer: Trainer, module: LitLM, loss: float) -> None:
        if trainer.is_global_zero:
            message = f"step {self.step}: loss spike: {loss:.3f}, running mean {self.mean:.3f}"
            message += module.data_info.describe_windows(self.step)
            print(f"{message}; print them with lit-lm data show --step {self.step}", flush=True)
            log_text(trainer, "loss spikes", message)
