"""LitLM: the Transformer as a LightningModule, with its loss, optimizer, schedule and what it logs."""

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lit_lm.checkpoint import FORMAT
from lit_lm.inference.continuation import Continuation
from lit_lm.inference.engine import Engine, make_engine
from lit_lm.inference.generate import generate
from lit_lm.inference.sampling import Sampling
from lit_lm.inference.text import stop_watch
from lit_lm.inference.weights import WeightDtype as Weights
from lit_lm.model.flops import bits_per_byte, flops_per_token, perplexity
from lit_lm.model.losses import IGNORE_INDEX, linear_cross_entropy
from lit_lm.model.transformer import Transformer, TransformerConfig
from lit_lm.optim import FusedOptimizer, Muon, Schedule, WarmupStableDecay, parameter_groups
from lit_lm.training.hardware import keep_freed_memory, worth_compiling
from lit_lm.training.resume import go_to_step, keep_options

Batch = tuple[Tensor, Tensor]
"""Inputs and targets, each (B, T) int64."""


class StepTaken(NamedTuple):
    """What is known of an optimizer step afterwards."""

    step: int
    """Its number, from 1."""
    loss: float
    """Mean over its micro-batches and devices."""
    gradient_norm: float
    """Before clipping."""


class LitLM(LightningModule):
    """A language model that learns to predict the next token."""

    def __init__(
        self,
        net: TransformerConfig = TransformerConfig(),
        optimizer: Callable[[Iterable[Any]], Optimizer] = Muon,
        schedule: Callable[[Optimizer], LRScheduler] = WarmupStableDecay,
        document_mask: bool = False,
        z_loss: float = 0.0,
        compile: bool | None = None,
        activation_checkpointing: bool = False,
        max_skipped_steps: int = 10,
        seed: int = 0,
    ) -> None:
        """
        Args:
            net: The Transformer's shape.
            optimizer: Class of the optimizer, lit_lm.optim.muon's, lit_lm.optim.adamw's or torch's own.
            schedule: Class of the learning-rate schedule, stepped at every update.
            document_mask: Keep attention and positions inside each document of a window.
            z_loss: Weight of the mean square of log sum exp(logits), which keeps them small in a long run (1e-4).
            compile: Have torch compile the training step; null: if the run is long enough to earn it back.
            activation_checkpointing: Keep only the blocks' inputs and compute the rest again for the gradient: less
                memory, a third more work.
            max_skipped_steps: A step whose loss or gradient is not finite is skipped; so many in a row end the run.
            seed: Decides weights, dropout and samples (set by seed).
        """
        super().__init__()
        self.save_hyperparameters()
        torch.manual_seed(seed)
        self.net = Transformer(net)
        self.optimizer, self.schedule, self.seed = optimizer, schedule, seed
        self.document_mask, self.z_loss = document_mask, z_loss
        self.net.recompute_blocks = activation_checkpointing
        self.compile_wanted = compile
        self.compiled_features: Callable[..., Tensor] | None = None
        """The compiled `net.features`, for training alone: elsewhere shapes vary, and each would compile anew."""
        self.sampling = Sampling()
        """How `predict` continues prompts."""
        self.weights: Weights | None = None
        """Type that `predict` keeps the weights in; None: as they are."""
        self.stop: tuple[str, ...] = ()
        """Strings that end a continuation in `predict`."""
        self._decoder: Engine | None = None
        self._val_sums: dict[int, Tensor] = {}
        """Of each validation source: sum of the losses of its tokens, number of tokens."""
        self.step_losses: list[Tensor] = []
        """Losses of the micro-batches of the present step."""
        self._unread: list[Tensor] = []
        """Loss and norm of the gradient (2) of the steps since `read_steps`, the present one last, on the device."""
        self.steps_read: list[StepTaken] = []
        """What `read_steps` read last."""
        self.max_skipped_steps = max_skipped_steps
        self.skipped_steps = self.skipped_in_a_row = 0

    def on_fit_start(self) -> None:
        """Make ready for many steps of one shape."""
        keep_freed_memory()
        tokens = self.trainer.max_steps * self.trainer.datamodule.tokens_per_step  # type: ignore[attr-defined]
        if self.compile_wanted is None:
            wanted = worth_compiling(self.device.type, tokens * flops_per_token(self.net))
        else:
            wanted = self.compile_wanted
        self.compiled_features = torch.compile(self.net.features, dynamic=False) if wanted else None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss of a micro-batch."""
        if self.net.config.dropout > 0:  # dropout is a function of the place in the run, not of what ran before
            torch.manual_seed(self.seed_at("dropout", self.global_step, len(self.step_losses), self.global_rank))
        loss = self._loss(batch)
        self.step_losses.append(loss.detach())
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Measure the gradient, skip the step if it is not finite, clip it as the Trainer says, and log.

        With an optimizer of lit-lm all of it stays on the device: the host looks when there is something to log.
        """
        step = self.global_step + 1
        loss = self.step_losses[0] if len(self.step_losses) == 1 else torch.stack(self.step_losses).mean()
        loss = self.trainer.strategy.reduce(loss, reduce_op="mean")
        self.step_losses = []
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters]).float()
        self._unread.append(torch.stack([loss.float(), norm]))
        by_norm = gradient_clip_algorithm in (None, "norm")
        if isinstance(optimizer, FusedOptimizer):
            optimizer.found_inf = (~torch.isfinite(norm + loss)).float()
            optimizer.grad_scale = (norm / gradient_clip_val).clamp(min=1.0) if gradient_clip_val and by_norm else None
        elif not torch.isfinite(norm + loss):
            self.zero_grad(set_to_none=True)  # an optimizer passes over parameters without a gradient
        elif gradient_clip_val and by_norm:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)
        if not by_norm:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        if self.logs_at(step):
            self.read_steps(step)
            self._record(
                {
                    "train/loss": self.steps_read[-1].loss,
                    "train/learning_rate": optimizer.param_groups[0]["lr"],
                    "train/gradient_norm": self.steps_read[-1].gradient_norm,
                    "train/skipped_steps": float(self.skipped_steps),
                },
                step,
            )

    @property
    def last_loss(self) -> float:
        """Of the step taken last, over all its micro-batches and devices."""
        if self._unread:
            return float(self._unread[-1][0])
        return self.steps_read[-1].loss if self.steps_read else math.nan

    def read_steps(self, last: int) -> None:
        """Bring what the device knows of the steps up to `last` to the host, and tell of those that were skipped.

        Raises:
            ValueError: if too many in a row were.
        """
        if not self._unread:
            return
        first = last - len(self._unread) + 1
        rows = torch.stack(self._unread).tolist()
        self._unread = []
        self.steps_read = [StepTaken(first + number, *row) for number, row in enumerate(rows)]
        for taken in self.steps_read:
            if math.isfinite(taken.loss + taken.gradient_norm):
                self.skipped_in_a_row = 0
            else:
                self._tell_skipped(taken)

    def on_train_batch_end(self, *_: Any) -> None:
        """Have the run end with a validation, whatever the interval: Lightning validates where it is told to stop."""
        if self.global_step >= self.trainer.max_steps:
            self.trainer.should_stop = True

    def on_train_end(self) -> None:
        """Tell of the last steps as well."""
        self.read_steps(self.global_step)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the mean loss of its source, weighted by its tokens."""
        tokens = (batch[1] != IGNORE_INDEX).sum()
        sums = torch.stack([self._loss(batch) * tokens, tokens.float()])
        self._val_sums[dataloader_idx] = self._val_sums.get(dataloader_idx, torch.zeros_like(sums)) + sums

    def on_validation_epoch_end(self) -> None:
        """Log loss, perplexity and bits per byte over the whole validation data, and of each source."""
        self._record_mean("val")

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """As in validation, under test/."""
        self._record_mean("test")

    def prompt_seed(self, number: int) -> int:
        """The seed of prompt `number`, whatever batch and device it is on."""
        return self.seed_at("sample", number)

    def predict_step(self, batch: tuple[list[int], list[list[int]]], batch_idx: int) -> list[list[Continuation]]:
        """Continuations of prompts, given by their numbers and ids, as `generate` gives them, each as far as needed to
        have a stop string.
        """
        numbers, prompts = batch
        if not prompts:
            return []
        if self._decoder is None:  # made here, where autocast is on
            self._decoder = make_engine(self.net, self.weights)
        seeds = [self.prompt_seed(number) for number in numbers]
        tokenizer = self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        watch = stop_watch(tokenizer, self.stop)
        return generate(self._decoder, prompts, self.sampling, seeds=seeds, end_id=tokenizer.end_id, watch=watch)

    def on_predict_end(self) -> None:
        """The weights may change before the next time."""
        self._decoder = None

    def configure_optimizers(self) -> Any:
        """The optimizer over decayed and exempt parameters, and the schedule, stepped at every update.

        Raises:
            ValueError: if the schedule needs the length of a run that has none, or a metric.
        """
        optimizer = self.optimizer(parameter_groups(self.net, self.net.hidden_matrices()))
        optimizer.register_load_state_dict_pre_hook(keep_options)
        scheduler = self.schedule(optimizer)
        if isinstance(scheduler, Schedule) and scheduler.max_steps is None:
            if self.trainer.max_steps < 1:
                name = type(scheduler).__name__
                raise ValueError(f"{name} needs to know where the run ends: set trainer.max_steps")
            scheduler.max_steps = self.trainer.max_steps
        if isinstance(scheduler, ReduceLROnPlateau):
            raise ValueError("ReduceLROnPlateau follows a metric, but schedules here follow the step; choose another")
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep hyperparameters as plain values only, so that the file loads without running code.

        They are plain when they come from the command line. An optimizer or schedule given from Python is a function,
        and stays out.
        """
        hyperparameters = dict(checkpoint["hyper_parameters"])
        if isinstance(hyperparameters["net"], TransformerConfig):
            hyperparameters["net"] = asdict(hyperparameters["net"])
        tokenizer = getattr(getattr(self.trainer, "datamodule", None), "tokenizer", None)
        checkpoint["tokenizer"] = None if tokenizer is None else tokenizer.to_json()
        checkpoint["lit_lm_format"], checkpoint["lit_lm_version"] = FORMAT, version("lit-lm")
        checkpoint["skipped_steps"] = [self.skipped_steps, self.skipped_in_a_row]
        checkpoint["unread_steps"] = [row.tolist() for row in self._unread]
        checkpoint["hyper_parameters"] = {key: value for key, value in hyperparameters.items() if not callable(value)}

    def logs_at(self, step: int) -> bool:
        """Whether the training metrics of update number `step` (from 1) are logged."""
        return step == 1 or step % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting skipped steps. The schedule has no state but the step: see `on_train_start`."""
        self.skipped_steps, self.skipped_in_a_row = checkpoint["skipped_steps"]
        self._unread = [torch.tensor(row, device=self.device) for row in checkpoint.get("unread_steps", [])]
        checkpoint["lr_schedulers"] = []

    def on_train_start(self) -> None:
        """Bring the schedule to the step at which the run goes on."""
        for config in self.trainer.lr_scheduler_configs:
            go_to_step(config.scheduler, self.global_step)

    def seed_at(self, *place: object) -> int:
        """A seed for one place in the run, the same whenever and wherever the run gets there."""
        digest = hashlib.blake2b(repr((self.seed, *place)).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1

    def _tell_skipped(self, taken: StepTaken) -> None:
        self.skipped_steps += 1
        self.skipped_in_a_row += 1
        data = getattr(self.trainer, "datamodule", None)
        windows = f"; its windows are {data.windows_of_step(taken.step - 1)}" if data is not None else ""
        message = f"step {taken.step}: loss {taken.loss}, gradient norm {taken.gradient_norm}{windows}"
        if self.skipped_in_a_row >= self.max_skipped_steps:
            raise ValueError(f"{message}\nthis is step number {self.skipped_in_a_row} in a row that had to be skipped")
        if self.global_rank == 0:
            print(f"{message}; the step is skipped", flush=True)

    def _loss(self, batch: Batch) -> Tensor:
        inputs, targets = batch
        compiled = self.compiled_features if self.training else None
        documents = self._documents(inputs) if self.document_mask else None
        hidden = (compiled or self.net.features)(inputs, documents=documents).flatten(0, 1)
        z_loss = self.z_loss if self.training else 0.0
        return linear_cross_entropy(
            hidden, self.net.head.weight, targets.flatten(), z_loss=z_loss, compiled=compiled is not None
        )

    def _documents(self, inputs: Tensor) -> Tensor:
        """The number (B, T) of each input's document in its window.

        END_OF_TEXT is the first token of the document after it: generation begins a document with it alone, so it has
        to predict one without having seen what it ended.
        """
        end_id: int = self.trainer.datamodule.tokenizer.end_id  # type: ignore[attr-defined]
        return (inputs == end_id).cumsum(dim=1)

    def _record_mean(self, stage: str) -> None:
        sums = torch.stack([self._val_sums[number] for number in sorted(self._val_sums)])
        sums = self.trainer.strategy.reduce(sums, reduce_op="sum").cpu()
        self._val_sums = {}
        data = getattr(self.trainer, "datamodule", None)
        metas = {name: store.meta for name, store in data.stores["validation"].items()} if data is not None else {}
        loss = float(sums[:, 0].sum() / sums[:, 1].sum())
        metrics = {f"{stage}/loss": loss, f"{stage}/perplexity": perplexity(loss)}
        if metas:
            tokens, num_bytes, characters = (
                sum(getattr(meta, what) for meta in metas.values()) for what in ("tokens", "bytes", "characters")
            )
            bits = bits_per_byte(loss, num_bytes / tokens)
            metrics[f"{stage}/bits_per_byte"] = bits
            if characters < 0.9 * num_bytes:  # of English it would be nearly the same number
                metrics[f"{stage}/bits_per_character"] = bits * num_bytes / characters
        if len(metas) > 1:
            for (name, meta), (total, tokens) in zip(metas.items(), sums.tolist(), strict=True):
                metrics[f"{stage}/loss/{name}"] = total / tokens
                metrics[f"{stage}/bits_per_byte/{name}"] = bits_per_byte(total / tokens, meta.bytes_per_token)
        self._record(metrics, self.global_step)

    def _record(self, metrics: dict[str, float], step: int) -> None:
        """Metrics to the Trainer, for callbacks, and to the loggers under the number of steps taken.

        They are means already; `self.log` would make ready to take means of them, which takes a millisecond.
        """
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        for logger in self.loggers if self.trainer.state.fn == "fit" else ():
            logger.log_metrics(metrics, step=step)
