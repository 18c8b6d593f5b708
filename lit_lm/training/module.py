"""LitLM: the Transformer as a LightningModule, with loss, optimizer, schedule and logging."""

import math
import warnings
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_lm.checkpoint import FORMAT, read_checkpoint
from lit_lm.data.info import DataInfo
from lit_lm.data.loader import Batch, data_share
from lit_lm.inference.sampling import derive_seed
from lit_lm.model.config import TransformerConfig
from lit_lm.model.cost import flops_per_token
from lit_lm.model.layers import document_indices
from lit_lm.model.losses import linear_cross_entropy
from lit_lm.model.transformer import Transformer
from lit_lm.optim import Muon, WarmupStableDecay, parameter_groups
from lit_lm.optim.fused import clip_or_skip
from lit_lm.optim.schedules import fit_to_run
from lit_lm.optim.sharded import group_of, local_parts, total_norm
from lit_lm.training.checkpoint_files import CheckpointFiles
from lit_lm.training.hardware import compile_static, tune_malloc, worth_compiling
from lit_lm.training.hyperparameters import check_storable, own_classes, plain_values
from lit_lm.training.processes import share_step
from lit_lm.training.resume import go_to_step, keep_options, tag_state
from lit_lm.training.sharding import mesh_of, shard
from lit_lm.training.state import RunState
from lit_lm.training.step_log import StepLog
from lit_lm.training.validation import ValidationMetrics


class LitLM(LightningModule):
    """Language model trained to predict the next token.

    Works with any Trainer and any DataLoader of `Batch`es. Some features need a data module with a `data_info`: see
    `lit_lm.data.info.DataInfo`.
    """

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
            net: Shape of the Transformer.
            optimizer: Optimizer class: Muon, AdamW or SGDDecay from lit_lm.optim, one from torch.optim, or your own.
            schedule: Learning-rate schedule class, stepped at every update: WarmupStableDecay or WarmupCosine from
                lit_lm.optim, one from torch.optim.lr_scheduler, or your own.
            document_mask: Restrict attention to the document of each token, and restart positions at each document.
            z_loss: Weight of the mean square of logsumexp(logits), which keeps logits small in long runs (try 1e-4).
            compile: Compile the training step with torch.compile; null: only in long runs, where it pays off.
            activation_checkpointing: Keep only the inputs of the blocks and recompute the rest for the gradient: less
                memory, a third more compute.
            max_skipped_steps: Steps with a non-finite loss or gradient are skipped; training stops after this many in a
                row.
            seed: Seed of initial weights, dropout and samples (set by --seed).

        Raises:
            ValueError: if a value is out of range.
        """
        super().__init__()
        if not 0 <= z_loss < math.inf:
            raise ValueError(f"z_loss is {z_loss}; it must be at least 0")
        if max_skipped_steps < 1:
            raise ValueError(f"max_skipped_steps is {max_skipped_steps}; it must be at least 1")
        self.save_hyperparameters()
        with torch.random.fork_rng(devices=[]):  # keeps the caller's random state unchanged
            torch.manual_seed(seed)
            self.net = Transformer(net)
        self.optimizer, self.schedule, self.seed = optimizer, schedule, seed
        self.document_mask, self.z_loss = document_mask, z_loss
        self.net.recompute_blocks = activation_checkpointing
        self.compile_wanted = compile
        self.compiled_features: Callable[..., Tensor] | None = None
        """`net.features` compiled for training; None: not compiled. Validation is eager unless the model is sharded."""
        self.steps = StepLog(max_skipped_steps)
        self.run = RunState()
        self.data_info = DataInfo()
        self.step_losses: list[Tensor] = []
        """Losses of the micro-batches of the current step."""
        self.validation: ValidationMetrics | None = None
        """Metrics of the current validation or test."""

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (B, T, V) for the token after each of ids (B, T)."""
        return self.net(ids)  # type: ignore[no-any-return]

    def predict_step(self, batch: Batch | Tensor, batch_idx: int) -> Tensor:
        """Logits (B, T, V) for a batch, or for its inputs alone."""
        return self(batch if isinstance(batch, Tensor) else batch[0])  # type: ignore[no-any-return]

    def setup(self, stage: str) -> None:
        """Read the data module's `data_info`, and use CheckpointFiles unless the Trainer has another plugin.

        Raises:
            ValueError: if the data does not fit the model, `document_mask` is on and `data_info` has no tokenizer, or
                checkpoints could not contain a hyperparameter.
        """
        if type(self.trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            self.trainer.strategy.checkpoint_io = CheckpointFiles()
        data = getattr(self.trainer, "datamodule", None)
        self.data_info = getattr(data, "data_info", DataInfo())
        self.run.tokens_per_step = self.data_info.tokens_per_step
        self.data_info.check_fits(self.net.config)
        if self.document_mask and self.data_info.tokenizer is None:
            raise ValueError("document_mask needs a data module whose data_info has a tokenizer (for its end_id)")
        own_files = isinstance(self.trainer.strategy.checkpoint_io, CheckpointFiles)
        if stage == "fit" and self.trainer.checkpoint_callbacks and own_files:
            check_storable(self.plain_hyperparameters(), self, data)

    def configure_model(self) -> None:
        """Shard the model if the strategy does.

        Raises:
            ValueError: if it is another strategy than `FullyShardedStrategy` that does, or it cannot divide the model.
        """
        if (mesh := mesh_of(self.trainer, self.net.config)) is not None and not self.is_sharded:
            dtype = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else None
            shard(self.net, mesh, self.seed, compile=self._compiles(), dtype=dtype)

    @property
    def is_sharded(self) -> bool:
        """Whether this process holds only a part of the model."""
        return isinstance(self.net, FSDPModule)

    def configure_optimizers(self) -> Any:
        """Build the optimizer, with parameter groups with and without weight decay, and the schedule.

        Raises:
            ValueError: if the schedule needs a metric, ends before the run, or needs `max_steps` in an endless run.
        """
        try:
            optimizer = self.optimizer(parameter_groups(self.net, self.net.hidden_matrices()))
        except TypeError as error:
            raise ValueError(f"the optimizer cannot be built from its options: {error}") from None
        optimizer.register_state_dict_post_hook(tag_state)
        optimizer.register_load_state_dict_pre_hook(keep_options)
        scheduler = self.schedule(optimizer)
        fit_to_run(scheduler, lambda: self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Tune malloc, and compile if it pays off."""
        tune_malloc(keep=not self.is_sharded)
        self.compiled_features = None
        if self._compiles():
            features = self.net.features  # of a sharded model, the blocks are compiled already
            self.compiled_features = features if self.is_sharded else compile_static(features)

    def on_train_start(self) -> None:
        """Set the schedule to the step at which the run resumes."""
        for config in self.trainer.lr_scheduler_configs:
            go_to_step(config.scheduler, self.global_step)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss of a micro-batch."""
        rank, devices = data_share(self.trainer)
        if self.run.tokens_per_step is None:
            self.run.tokens_per_step = batch[0].numel() * devices * self.trainer.accumulate_grad_batches
        if self.net.config.dropout > 0:  # dropout depends on step, micro-batch and rank, not on what ran before
            torch.manual_seed(self.seed_at("dropout", self.global_step, len(self.step_losses), rank))
        loss = self._loss(batch)
        self.step_losses.append(loss.detach())
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Compute the gradient norm, skip the step if it is not finite, clip as the Trainer is configured, and log.

        In one process, with an optimizer of lit_lm.optim, the host waits for the device only at steps that log.
        """
        step = self.global_step + 1
        loss = self.step_losses[0] if len(self.step_losses) == 1 else torch.stack(self.step_losses).mean()
        loss, self.run.shared_requests = share_step(loss, *self.run.requests)
        self.step_losses = []
        norm = total_norm([p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None])
        self.steps.add(loss, norm)
        by_norm = gradient_clip_algorithm in (None, "norm")
        clip_or_skip(optimizer, norm, float(gradient_clip_val or 0) if by_norm else 0.0, torch.isfinite(norm + loss))
        if not by_norm:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        if self.logs_at(step):
            self._log_step(step, optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, *_: Any) -> None:
        """Validate at the end of the run, whatever the interval: Lightning validates when `should_stop` is set."""
        if self.global_step >= self.trainer.max_steps > 0:
            self.trainer.should_stop = True

    def on_train_end(self) -> None:
        """Read the remaining steps, to report skipped ones."""
        self.read_steps(self.global_step)

    def on_validation_start(self) -> None:
        """Start the metrics anew."""
        self.validation = ValidationMetrics(self.data_info, len(self.trainer.num_val_batches)).to(self.device)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the loss of its source, weighted by its number of tokens."""
        assert self.validation is not None
        self.validation.update(self._loss(batch), batch[1], dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Log loss, perplexity and bits per byte over all validation data and for each source."""
        self._log_metrics("val")

    def on_test_start(self) -> None:
        """Start the metrics anew."""
        self.validation = ValidationMetrics(self.data_info, len(self.trainer.num_test_batches)).to(self.device)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Same as `validation_step`."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """Log the metrics of validation as test/*."""
        self._log_metrics("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store hyperparameters as plain values only, so that the file loads without running code.

        The names of a user's own subclasses of LitLM and of the data module are stored, so that the error on resuming
        without them names them.
        """
        tokenizer = self.data_info.tokenizer
        checkpoint["tokenizer"] = None if tokenizer is None else tokenizer.to_json()
        checkpoint.update(own_classes(self, getattr(self.trainer, "datamodule", None)))
        checkpoint["lit_lm_format"], checkpoint["lit_lm_version"] = FORMAT, version("lit-lm")
        checkpoint.update(self.steps.state())
        checkpoint["hyper_parameters"] = self.plain_hyperparameters()
        if "lr_schedulers" in checkpoint:
            checkpoint["lr_schedulers"] = []  # not needed, and a user's own schedule may keep what is not plain data

    def plain_hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments as plain values."""
        return plain_values(self.hparams)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the count of skipped steps. The schedule needs only the step: see `on_train_start`."""
        self.steps.restore(checkpoint)
        checkpoint["lr_schedulers"] = []

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, **hyperparameters: Any) -> Self:  # type: ignore[override]
        """Load a model on the CPU. Optimizer and schedule are the defaults unless passed.

        Args:
            checkpoint_path: Checkpoint written by `fit` or by any Trainer with a LitLM.
            hyperparameters: Arguments of the class that override those in the checkpoint.

        Raises:
            FileNotFoundError, ValueError: see `lit_lm.checkpoint.read_checkpoint`.
        """
        checkpoint = read_checkpoint(checkpoint_path)
        config = checkpoint.config(training=False)
        values = {**config["model"], "net": TransformerConfig(**config["model"]["net"]), "seed": config["seed"]}
        module = cls(**values | hyperparameters)
        module.net.load_state_dict(checkpoint.weights)
        return module

    def logs_at(self, step: int) -> bool:
        """Whether the training metrics of step `step` (from 1) are logged."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return step == 1 or (every > 0 and step % every == 0)

    def read_steps(self, last: int) -> None:
        """Copy the steps that are still on the device, up to step `last`, to the host; report skipped ones.

        Raises:
            ValueError: if `max_skipped_steps` steps in a row were skipped.
        """
        for message in self.steps.read(last, self.data_info.describe_windows):
            if self.global_rank == 0:
                print(message, flush=True)
        self.run.loss = self.steps.last_loss

    def seed_at(self, *place: object) -> int:
        """Seed for one place in the run, derived from the run's seed and `place` alone."""
        return derive_seed(self.seed, *place)

    def _compiles(self) -> bool:
        """Whether to compile the training step."""
        if self.compile_wanted is not None:
            return self.compile_wanted
        tokens = self.trainer.max_steps * (self.run.tokens_per_step or 0)
        device = self.trainer.strategy.root_device  # a model that will be sharded is on the meta device at first
        return worth_compiling(device.type, tokens * flops_per_token(self.net.config))

    def _loss(self, batch: Batch) -> Tensor:
        inputs, targets = batch
        compiled = self.compiled_features if self.training else None
        tokenizer = self.data_info.tokenizer if self.document_mask else None
        documents = None if tokenizer is None else document_indices(inputs, tokenizer.end_id)
        features = (compiled or self.net.features)(inputs, documents=documents).flatten(0, 1)
        z_loss = self.z_loss if self.training else 0.0
        (weight,), group = local_parts([self.net.head.weight]), group_of(self.net.head.weight)
        return linear_cross_entropy(
            features, weight, targets.flatten(), z_loss=z_loss, compiled=compiled is not None, group=group
        )

    def _log_step(self, step: int, learning_rate: float) -> None:
        self.read_steps(step)
        taken = self.steps.last_read[-1]
        metrics = {
            "train/loss": taken.loss,
            "train/learning_rate": learning_rate,
            "train/gradient_norm": taken.gradient_norm,
            "train/skipped_steps": float(self.steps.skipped),
        }
        for logger in self.loggers:
            logger.log_metrics(metrics, step=step)
        self.log("train/loss", taken.loss, logger=False)  # with prog_bar it would be read at every step

    def _log_metrics(self, stage: str) -> None:
        if self.validation is None or self.trainer.sanity_checking:
            return
        metrics = {f"{stage}/{name}": value for name, value in self.validation.compute().items()}
        self.validation = None
        fitting = self.trainer.state.fn == "fit"
        if fitting:
            for logger in self.loggers:  # at the number of steps taken; Lightning would use another step
                logger.log_metrics(metrics, step=self.global_step)
        with warnings.catch_warnings():
            # with logger=True, validate() returns the metrics
            warnings.filterwarnings("ignore", ".*but have no logger configured")
            self.log_dict(metrics, prog_bar=True, logger=not fitting)
