"""Training speed."""

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_lm.model.cost import flops_per_token
from lit_lm.training.hardware import measured_peak_flops
from lit_lm.training.module import LitLM


class Throughput(Callback):
    """Logs tokens seen, tokens per second and model FLOPs utilization at logged steps. Validation is not timed."""

    def __init__(self) -> None:
        self._since = self._paused = 0.0
        self._since_step = 0
        self._peak_flops = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        dtype = torch.bfloat16 if "bf16" in str(trainer.precision) else torch.float32
        dtype = torch.float16 if str(trainer.precision).startswith("16") else dtype
        self._peak_flops = measured_peak_flops(pl_module.device, dtype)
        self._start(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, LitLM)
        steps = trainer.global_step - self._since_step
        if steps == 0 or not pl_module.logs_at(trainer.global_step):
            return
        tokens_per_step = pl_module.run.tokens_per_step or 0
        speed = steps * tokens_per_step / (time.perf_counter() - self._since)
        pl_module.run.tokens_per_second = speed
        if trainer.loggers:
            achieved = speed * flops_per_token(pl_module.net.config) / trainer.world_size
            metrics = {
                "train/tokens": float(trainer.global_step * tokens_per_step),
                "train/tokens_per_second": speed,
                "train/mfu": achieved / self._peak_flops,
            }
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=trainer.global_step)
        self._start(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since += time.perf_counter() - self._paused

    def _start(self, trainer: Trainer) -> None:
        self._since, self._since_step = time.perf_counter(), trainer.global_step
