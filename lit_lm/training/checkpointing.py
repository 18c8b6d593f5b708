"""Checkpoints: a run that is killed at any moment goes on as if nothing had happened.

A run is a function of its config and seed: the windows of step s, its dropout and its samples follow from s alone. So
the state of a run after s steps is the weights, the optimizer's averages and s, and of these the Trainer's many
counters are functions. They are not restored from the file but computed from s, for the number of devices at hand.

A checkpoint is taken between two steps, when the validation that belongs to the first is over. It appears under its
name when it is whole; older ones go only then.
"""

import math
import signal
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import TensorBoardLogger

from lit_lm.checkpoint import write_checkpoint
from lit_lm.runs import checkpoints_in, keep_only, point_to
from lit_lm.training.resume import progress_after

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
"""Please stop: from a scheduler, from a person, from SLURM (`--signal=USR1@90`)."""


class Checkpoints(Checkpoint):
    """Saves every few steps, at the best validation loss, at the end, and when told to stop.

    The run's folder gets `checkpoints/step_00000250.ckpt` and so on, and the links `last.ckpt` and `best.ckpt`.
    """

    def __init__(self, every_n_steps: int = 250, keep_last: int = 2) -> None:
        """
        Args:
            every_n_steps: Steps from one checkpoint to the next: the most that a crash costs.
            keep_last: How many of the newest checkpoints are kept, beside the best one.

        Raises:
            ValueError: if a value is less than 1.
        """
        if problems := [f"{name} is {n}; it must be at least 1" for name, n in
                        (("every_n_steps", every_n_steps), ("keep_last", keep_last)) if n < 1]:  # fmt: skip
            raise ValueError("\n".join(problems))
        self.every_n_steps, self.keep_last = every_n_steps, keep_last
        self.best_loss, self.best_step = math.inf, 0
        self.saved_step = 0
        self.folder: Path | None = None
        self._failures = 0
        self._signal: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        assert self.folder is not None
        return self.folder / f"step_{step:08d}.ckpt"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        log_dir = trainer.log_dir  # asks all processes, so all must ask
        self.folder = Path(log_dir or trainer.default_root_dir) / "checkpoints"
        if not self.path(self.best_step).exists():  # the best one was another run's
            self.best_loss, self.best_step = math.inf, 0
        self._handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loss = trainer.callback_metrics.get("val/loss")
        if trainer.state.fn == "fit" and loss is not None and float(loss) < self.best_loss:
            self.best_loss, self.best_step = float(loss), trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Between two steps: save if it is time, and leave if told to."""
        if batch_idx % trainer.accumulate_grad_batches:
            return
        step = trainer.global_step
        stop = trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False)
        if step > self.saved_step and (stop or step % self.every_n_steps == 0 or step == self.best_step):
            self._save(trainer)
        if stop:
            self._leave(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step > self.saved_step:
            self._save(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def state_dict(self) -> dict[str, Any]:
        return {"best_loss": self.best_loss, "best_step": self.best_step, "saved_step": self.saved_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_loss, self.best_step = state_dict["best_loss"], state_dict["best_step"]
        self.saved_step = state_dict["saved_step"]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put what the Trainer's counters must be after that many steps in place of what they were."""
        if trainer.state.fn == "fit":
            fresh = trainer.fit_loop.state_dict()
            steps, accumulation = checkpoint["global_step"], trainer.accumulate_grad_batches
            checkpoint["loops"]["fit_loop"] = progress_after(steps, accumulation, fresh)

    def _save(self, trainer: Trainer) -> None:
        previous, self.saved_step = self.saved_step, trainer.global_step
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()  # a checkpoint at step s promises the curves up to s
        content = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        problem = None
        if trainer.is_global_zero:
            try:
                write_checkpoint(content, self.path(self.saved_step))
                self._tidy_up()
            except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError for a full disk
                problem = str(error).splitlines()[0]
        problem = trainer.strategy.broadcast(problem)
        if problem is None:
            self._failures = 0
            return
        self._failures += 1
        message = f"the checkpoint of step {self.saved_step} could not be written ({problem})"
        message += f"; the last good one is {self.path(previous)}" if previous else "; there is no earlier one"
        self.saved_step = previous
        if self._failures > 1:
            raise OSError(f"{message}; this is the second time in a row")
        if trainer.is_global_zero:
            print(f"{message}; training goes on", flush=True)

    def _tidy_up(self) -> None:
        """Now that the new checkpoint is whole: move the links, remove what is no longer kept."""
        assert self.folder is not None
        point_to(self.folder / "last.ckpt", self.path(self.saved_step))
        steps_taken = [path for path in checkpoints_in(self.folder) if path <= self.path(self.saved_step)]
        kept = set(steps_taken[: self.keep_last])  # those of later steps are damaged, or of another course of the run
        if self.path(self.best_step).exists():
            point_to(self.folder / "best.ckpt", self.path(self.best_step))
            kept.add(self.path(self.best_step))
        keep_only(self.folder, kept)

    def _on_signal(self, number: int, frame: Any) -> None:
        """Remember the first; a second one does what it would have done without us."""
        self._signal = signal.Signals(number)
        signal.signal(number, self._handlers[self._signal])

    def _leave(self, trainer: Trainer) -> None:
        number = self._signal or signal.SIGTERM  # another process may be the one that was told
        if trainer.is_global_zero:
            saved = (
                f"it is saved in {self.path(self.saved_step)}"
                if self.saved_step == trainer.global_step
                else "not saved"
            )
            print(
                f"stopped by {number.name} after step {trainer.global_step:,}; {saved}\n"
                "go on with the same command and --ckpt_path last",
                flush=True,
            )
        # 128 + signal is what a shell reports; the launcher kills the first process when another one fails
        raise SystemExit(128 + number if trainer.is_global_zero else 0)


class LossSpikes(Callback):
    """Tells of a loss far above its running mean, and of the windows that caused it.

    Far is SPREAD standard deviations; mean and deviation are exponential averages over about the last 50 steps.
    """

    DECAY = 0.98
    SPREAD = 6.0
    AFTER = 50

    def __init__(self) -> None:
        self.step, self.mean, self.variance = 0, 0.0, 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        steps_read: Any = pl_module.steps_read
        if not steps_read or steps_read[-1].step <= self.step:
            return
        for taken in steps_read:
            if taken.step > self.step and math.isfinite(taken.loss):
                self._follow(trainer, taken.step, taken.loss)

    def _follow(self, trainer: Trainer, step: int, loss: float) -> None:
        self.step = step
        if self.step > self.AFTER and loss > self.mean + self.SPREAD * math.sqrt(self.variance):
            self._tell(trainer, loss)
        share = max(1 - self.DECAY, 1 / self.step)  # at first a plain average
        self.variance = (1 - share) * (self.variance + share * (loss - self.mean) ** 2)
        self.mean += share * (loss - self.mean)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "mean": self.mean, "variance": self.variance}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.step, self.mean, self.variance = state_dict["step"], state_dict["mean"], state_dict["variance"]

    def _tell(self, trainer: Trainer, loss: float) -> None:
        windows = trainer.datamodule.windows_of_step(self.step - 1)  # type: ignore[attr-defined]
        message = f"step {self.step}: the loss {loss:.3f} is a spike over {self.mean:.3f}; its windows are {windows}"
        if trainer.is_global_zero:
            print(f"{message}; read them with lit-lm data show --step {self.step}", flush=True)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_text("loss spikes", message, self.step)
