"""Saving checkpoints, and stopping on a signal.

Checkpoints are saved between two steps, after the validation that follows the first. A checkpoint appears under its
name only when it is complete; older ones are removed only after that.
"""

import math
import os
import signal
from fractions import Fraction
from pathlib import Path
from time import monotonic
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch.optim import Optimizer

from lit_lm.runs import checkpoints_in, keep_only, point_to, step_of
from lit_lm.training.checkpoint_files import CheckpointFiles
from lit_lm.training.loggers import flush
from lit_lm.training.module import LitLM
from lit_lm.training.processes import HOW_TO_RESUME, requeue_job
from lit_lm.training.resume import progress_after
from lit_lm.training.signals import StopRequest
from lit_lm.training.state import RunState


class CheckpointCallback(Checkpoint):
    """Saves checkpoints at intervals, at the best validation loss, at the end, and on a stop signal.

    Writes `checkpoints/step_00000250.ckpt` etc. to the run's folder, and the links `last.ckpt` and `best.ckpt`.
    """

    EVERY_N_STEPS = 250

    def __init__(
        self,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        every_n_minutes: float | None = None,
        keep_last: int = 2,
    ) -> None:
        """
        Args:
            every_n_steps: Steps between checkpoints, which is the most that a crash can lose; null: 250, unless epochs
                or minutes are set. A sharded run can lose more: its last checkpoint may still be being written.
            every_n_epochs: Epochs between checkpoints, instead of steps.
            every_n_minutes: Minutes between checkpoints, instead of steps, by the clock of the first process.
            keep_last: Number of newest checkpoints to keep, in addition to the best one.

        Raises:
            ValueError: if a value is too small, or several intervals are given.
        """
        intervals = {
            "every_n_steps": every_n_steps,
            "every_n_epochs": every_n_epochs,
            "every_n_minutes": every_n_minutes,
        }
        given = {name: n for name, n in intervals.items() if n is not None}
        counts = {name: n for name, n in {**given, "keep_last": keep_last}.items() if name != "every_n_minutes"}
        problems = [f"{name} is {n}; it must be at least 1" for name, n in counts.items() if n < 1]
        if every_n_minutes is not None and not 0 < every_n_minutes < math.inf:
            problems.append(f"every_n_minutes is {every_n_minutes}; it must be more than 0 and finite")
        if len(given) > 1:
            problems.append(f"{' and '.join(f'{name} is {n}' for name, n in given.items())}; set only one of them")
        if problems:
            raise ValueError("\n".join(problems))
        self.every_n_epochs, self.every_n_minutes, self.keep_last = every_n_epochs, every_n_minutes, keep_last
        self._period = Fraction(every_n_steps or self.EVERY_N_STEPS)
        """Steps between checkpoints, unless the interval is in minutes; an epoch may end within a step."""
        self._saved_at = 0.0
        """Time of the last attempt to save, in seconds of the clock `monotonic`."""
        self.saved_step = 0
        self._previous: int | None = None
        """Step of the checkpoint before the one that is being written; None: none is being written."""
        self.folder: Path | None = None
        self._best = (math.inf, 0)
        """Loss and step of the best checkpoint, from the loaded state."""
        self._failures = 0
        self._request = StopRequest()

    def path(self, step: int) -> Path:
        """Path of the checkpoint of a step."""
        assert self.folder is not None
        return self.folder / f"step_{step:08d}.ckpt"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        log_dir = trainer.log_dir  # a broadcast: all processes must take part
        if not isinstance(files := trainer.strategy.checkpoint_io, CheckpointFiles):
            raise ValueError(
                f"CheckpointCallback writes with CheckpointFiles, but the Trainer has {type(files).__name__}: "
                "remove that plugin or CheckpointCallback"
            )
        if self.every_n_epochs is not None:
            self._period = self.every_n_epochs * _steps_per_epoch(trainer, pl_module)
        self.folder = (_run(pl_module).folder or Path(log_dir or trainer.default_root_dir)) / "checkpoints"
        if self.path(self._best[1]).exists():  # else the best checkpoint is another run's
            state = _run(pl_module)
            state.best_loss, state.best_step = self._best
        self._saved_at = monotonic()
        self._request.listen()
        # Lightning tells all processes of a SIGTERM before every micro-batch; now it does not receive it
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state, loss = _run(pl_module), trainer.callback_metrics.get("val/loss")
        if trainer.state.fn == "fit" and loss is not None and float(loss) < state.best_loss:
            state.best_loss, state.best_step = float(loss), trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Between two steps: save if due, and stop if a signal arrived."""
        if batch_idx % trainer.accumulate_grad_batches:
            return
        step, state = trainer.global_step, _run(pl_module)
        stop, late = self._requests(trainer, state)
        due = late if self.every_n_minutes is not None else self._is_due(step)
        if step > self.saved_step and (stop or due or step == state.best_step):
            self._save(trainer, pl_module, ends=stop)
        if stop:
            self._settle(trainer, state, ends=True)
            self._stop(trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Request a stop if a signal arrived, and a checkpoint if it is time. LitLM shares this with all processes."""
        _run(pl_module).requests = self._own_requests(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step > self.saved_step:
            self._save(trainer, pl_module, ends=True)
        self._settle(trainer, _run(pl_module), ends=True)
        if self.saved_step < trainer.global_step:
            remedy = HOW_TO_RESUME if self.saved_step else "free space, and run the command again"
            raise OSError(f"the last checkpoint, of step {trainer.global_step}, is missing; {remedy}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop as after a step if a signal to all processes has also ended the compiler."""
        if self._request.signal is not None and "CppCompileError" in str(exception):
            self._stop(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._request.stop_listening()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        state = _run(pl_module)
        checkpoint["callbacks"][self.state_key] = {
            "best_loss": state.best_loss,
            "best_step": state.best_step,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best = state_dict["best_loss"], state_dict["best_step"]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Compute the Trainer's counters from the step and the current number of micro-batches per step, and drop the
        best loss if it was measured on other data.
        """
        assert isinstance(pl_module, LitLM)
        if trainer.state.fn != "fit":
            return
        self.saved_step = checkpoint["global_step"]
        if pl_module.data_info.starts_at_step:
            fresh = trainer.fit_loop.state_dict()
            checkpoint["loops"]["fit_loop"] = progress_after(self.saved_step, trainer.accumulate_grad_batches, fresh)
        saved = checkpoint["callbacks"].get(self.state_key)
        if saved and saved["best_step"] and not _validates_like(trainer, pl_module, checkpoint):
            if trainer.is_global_zero:
                print("the validation data has changed: the best loss so far is dropped", flush=True)
            saved.update(best_loss=math.inf, best_step=0)

    def _own_requests(self, trainer: Trainer) -> tuple[bool, bool]:
        late = self.every_n_minutes is not None and monotonic() - self._saved_at >= 60 * self.every_n_minutes
        return self._request.signal is not None, late and trainer.is_global_zero

    def _requests(self, trainer: Trainer, state: RunState) -> tuple[bool, bool]:
        """Whether to stop, and whether to save since minutes have passed: the same in all processes."""
        if trainer.world_size == 1:
            return self._own_requests(trainer)
        stop, late = (0.0, 0.0) if state.shared_requests is None else state.shared_requests.tolist()
        return stop > 0, late > 0

    def _is_due(self, step: int) -> bool:
        """Whether a period ends with this step."""
        return step // self._period > (step - 1) // self._period

    def _save(self, trainer: Trainer, pl_module: LightningModule, *, ends: bool) -> None:
        """Save a checkpoint; if the model is sharded, it is written while training continues.

        `ends`: Whether the run ends here.
        """
        assert isinstance(pl_module, LitLM)
        self._settle(trainer, pl_module.run, ends=ends)
        self._previous, self.saved_step = self.saved_step, trainer.global_step
        self._saved_at = monotonic()
        flush(trainer)
        with _files(trainer).in_background():
            trainer.save_checkpoint(self.path(self.saved_step), weights_only=False)
        if not pl_module.is_sharded:
            self._settle(trainer, pl_module.run, ends=ends)

    def _settle(self, trainer: Trainer, state: RunState, *, ends: bool) -> None:
        """Wait for the checkpoint that is being written; then tidy up, or report that it could not be written."""
        if self._previous is None:
            return
        previous, self._previous = self._previous, None
        problem = trainer.strategy.broadcast(_files(trainer).finish())
        if problem is None:
            self._failures = 0
            if trainer.is_global_zero:
                self._tidy_up(state)
            return
        self._failures += 1
        message = f"the checkpoint of step {self.saved_step} could not be written ({problem})"
        message += f"; the last good one is {self.path(previous)}" if previous else "; there is no earlier one"
        self.saved_step = previous
        if self._failures > 1:
            raise OSError(f"{message}; this is the second time in a row")
        if trainer.is_global_zero:
            print(message if ends else f"{message}; training continues", flush=True)

    def _tidy_up(self, state: RunState) -> None:
        """Update the links and remove old checkpoints, now that the new one is complete."""
        assert self.folder is not None
        last, best = self.folder / "last.ckpt", self.folder / "best.ckpt"
        point_to(last, self.path(self.saved_step))
        up_to_now = [path for path in checkpoints_in(self.folder) if step_of(path) <= self.saved_step]
        kept = set(up_to_now[: self.keep_last])  # later ones are damaged or from before resuming
        if state.best_step and self.path(state.best_step).exists():
            point_to(best, self.path(state.best_step))
            kept.add(self.path(state.best_step))
            state.files["best checkpoint"] = best
        elif best.exists():  # from before the validation data changed
            kept.add(self.folder / best.resolve().name)
        state.files["last checkpoint"] = last
        keep_only(self.folder, kept)

    def _stop(self, trainer: Trainer) -> None:
        number = self._request.signal or signal.SIGTERM  # another process may have received the signal
        if trainer.is_global_zero:
            saved = self.saved_step == trainer.global_step > 0
            where = f"saved to {self.path(self.saved_step)}" if saved else "not saved"
            requeued = number == signal.SIGUSR1 and "SLURM_JOB_ID" in os.environ
            print(
                f"stopped by {number.name} after step {trainer.global_step:,}; {where}\n"
                f"{requeue_job() if requeued else HOW_TO_RESUME}",
                flush=True,
            )
        # 128 + signal, as in a shell; if another process failed, the launcher would kill the first one
        raise SystemExit(128 + number if trainer.is_global_zero else 0)


def _steps_per_epoch(trainer: Trainer, pl_module: LightningModule) -> Fraction:
    """Steps per epoch, from the data module or else from the Trainer.

    Raises:
        ValueError: if the data has no epochs.
    """
    assert isinstance(pl_module, LitLM)
    if pl_module.data_info.starts_at_step:  # the Trainer sees the run as one epoch
        steps = pl_module.data_info.steps_per_epoch
    else:
        batches = trainer.num_training_batches
        steps = Fraction(math.ceil(batches / trainer.accumulate_grad_batches)) if math.isfinite(batches) else None
    if steps is None:
        raise ValueError("checkpoint.every_n_epochs is set, but the data has no epochs: use checkpoint.every_n_steps")
    return steps


def _validates_like(trainer: Trainer, module: LitLM, checkpoint: dict[str, Any]) -> bool:
    """Whether the validation data is that of the checkpoint, as far as the data module records it."""
    if (data := getattr(trainer, "datamodule", None)) is None:
        return True
    states = checkpoint.get(type(data).__qualname__, {}), data.state_dict()
    before, now = (state.get("digests", {}).get("validation") for state in states)
    context_length: int = checkpoint["hyper_parameters"]["net"]["context_length"]
    return before == now and context_length == module.net.config.context_length


def _files(trainer: Trainer) -> CheckpointFiles:
    files = trainer.strategy.checkpoint_io
    assert isinstance(files, CheckpointFiles)
    return files


def _run(pl_module: LightningModule) -> RunState:
    assert isinstance(pl_module, LitLM)
    return pl_module.run
