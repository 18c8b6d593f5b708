"""LitLM: the Transformer as a LightningModule, with its loss, optimizer, schedule and what it logs."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric

from lit_lm.generation import Sampling, generate
from lit_lm.losses import IGNORE_INDEX, linear_cross_entropy
from lit_lm.metrics import bits_per_byte, perplexity
from lit_lm.model import Transformer, TransformerConfig
from lit_lm.optim import AdamW, parameter_groups
from lit_lm.schedules import WarmupCosine

Batch = tuple[Tensor, Tensor]
"""Inputs and targets, each (B, T) int64."""


class LitLM(LightningModule):
    """A language model that learns to predict the next token."""

    def __init__(
        self,
        net: TransformerConfig = TransformerConfig(),
        optimizer: Callable[[Iterable[Any]], Optimizer] = AdamW,
        schedule: Callable[[Optimizer], LRScheduler] = WarmupCosine,
        seed: int = 0,
    ) -> None:
        """
        Args:
            net: The Transformer's shape.
            optimizer: Class of the optimizer, lit_lm.optim's or torch's own.
            schedule: Class of the learning-rate schedule, stepped at every update.
            seed: Decides weights, dropout and samples (set by seed).
        """
        super().__init__()
        self.save_hyperparameters()
        torch.manual_seed(seed)
        self.net = Transformer(net)
        self.optimizer, self.schedule, self.seed = optimizer, schedule, seed
        self.sampling = Sampling()
        """How `predict` continues prompts."""
        self.val_loss = MeanMetric()
        self.step_losses: list[Tensor] = []
        """Losses of the micro-batches of the present step."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss of a micro-batch."""
        if self.net.config.dropout > 0:  # dropout is a function of the place in the run, not of what ran before
            torch.manual_seed(self.seed_at("dropout", self.global_step, len(self.step_losses), self.global_rank))
        loss = self._loss(batch)
        self.step_losses.append(loss.detach())
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the step that is about to be taken, at the Trainer's interval."""
        step = self.global_step + 1
        losses, self.step_losses = self.step_losses, []
        if not self.logs_at(step):
            return
        gradients = [p.grad for p in self.net.parameters() if p.grad is not None]
        loss = self.trainer.strategy.reduce(torch.stack(losses).mean(), reduce_op="mean")
        self._record(
            {
                "train/loss": float(loss),
                "train/learning_rate": optimizer.param_groups[0]["lr"],
                "train/gradient_norm": float(torch.nn.utils.get_total_norm(gradients)),
            },
            step,
        )

    def on_train_batch_end(self, *_: Any) -> None:
        """Have the run end with a validation, whatever the interval: Lightning validates where it is told to stop."""
        if self.global_step >= self.trainer.max_steps:
            self.trainer.should_stop = True

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the mean loss, weighted by its tokens."""
        self.val_loss.update(self._loss(batch), weight=(batch[1] != IGNORE_INDEX).sum())

    def on_validation_epoch_end(self) -> None:
        """Log loss, perplexity and bits per byte over the whole validation data."""
        self._record_mean("val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """As in validation, under test/."""
        self._record_mean("test")

    def predict_step(self, batch: Tensor, batch_idx: int) -> list[list[int]]:
        """Continuations of a prompt (1, T), as `generate` gives them."""
        prompt_number = batch_idx * self.trainer.world_size + self.global_rank
        return generate(
            self.net,
            batch[0].tolist(),
            self.sampling,
            seed=self.seed_at("sample", prompt_number),
            end_id=self.trainer.datamodule.tokenizer.end_id,  # type: ignore[attr-defined]
        )

    def configure_optimizers(self) -> Any:
        """The optimizer over decayed and exempt parameters, and the schedule, stepped at every update.

        Raises:
            ValueError: if the schedule needs the length of a run that has none.
        """
        optimizer = self.optimizer(parameter_groups(self.net))
        scheduler = self.schedule(optimizer)
        if isinstance(scheduler, WarmupCosine) and scheduler.max_steps is None:
            if self.trainer.max_steps < 1:
                raise ValueError("WarmupCosine needs to know where the run ends: set trainer.max_steps")
            scheduler.max_steps = self.trainer.max_steps
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep hyperparameters as plain values only, so that the file loads without running code.

        They are plain when they come from the command line. An optimizer or schedule given from Python is a function,
        and stays out.
        """
        hyperparameters = dict(checkpoint["hyper_parameters"])
        if isinstance(hyperparameters["net"], TransformerConfig):
            hyperparameters["net"] = asdict(hyperparameters["net"])
        checkpoint["hyper_parameters"] = {key: value for key, value in hyperparameters.items() if not callable(value)}

    def logs_at(self, step: int) -> bool:
        """Whether the training metrics of update number `step` (from 1) are logged."""
        return step == 1 or step % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]

    def seed_at(self, *place: object) -> int:
        """A seed for one place in the run, the same whenever and wherever the run gets there."""
        digest = hashlib.blake2b(repr((self.seed, *place)).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1

    def _loss(self, batch: Batch) -> Tensor:
        inputs, targets = batch
        hidden = self.net.hidden(inputs)
        return linear_cross_entropy(hidden.flatten(0, 1), self.net.head.weight, targets.flatten())

    def _record_mean(self, stage: str) -> None:
        loss = float(self.val_loss.compute())
        self.val_loss.reset()
        metrics = {f"{stage}/loss": loss, f"{stage}/perplexity": perplexity(loss)}
        bytes_per_token = getattr(getattr(self.trainer, "datamodule", None), "bytes_per_token", None)
        if bytes_per_token is not None:
            metrics[f"{stage}/bits_per_byte"] = bits_per_byte(loss, bytes_per_token)
        self._record(metrics, self.global_step)

    def _record(self, metrics: dict[str, float], step: int) -> None:
        """Metrics to the Trainer, for callbacks, and to the logger under the number of steps taken."""
        self.log_dict(metrics, logger=False)
        if self.logger is not None and self.trainer.state.fn == "fit":
            self.logger.log_metrics(metrics, step=step)
