"""Console output of a run."""

import sys
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from torch.optim import Optimizer
from tqdm import tqdm

from lit_lm.model.cost import num_parameters
from lit_lm.training.module import LitLM


class Console(ProgressBar):
    """Prints a line at the start, a progress bar of steps, a line per validation, and a summary at the end.

    The bar needs a terminal, or a notebook with ipywidgets; elsewhere, prints a line every LINES_EVERY seconds instead.
    """

    LINES_EVERY = 10.0
    BAR_EVERY = 0.2

    def __init__(self, every_n_steps: int | None = None) -> None:
        """
        Args:
            every_n_steps: Print a line with the loss every this many steps; null: show a progress bar on a terminal,
                and elsewhere print a line every ten seconds.

        Raises:
            ValueError: if `every_n_steps` is less than 1.
        """
        super().__init__()
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}; it must be at least 1, or null")
        self.every_n_steps = every_n_steps
        self._enabled = True
        self._learning_rate = 0.0
        self._bar: tqdm[Any] | None = None
        self._shown = self._started = 0.0
        self._shown_step = 0
        self._first_step = 0
        self._num_steps: int | None = None

    def disable(self) -> None:
        """Print nothing. The Trainer calls this on all processes except the first."""
        self._enabled = False

    def enable(self) -> None:
        """Print again."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print a line above the bar."""
        if self._enabled:
            tqdm.write(" ".join(str(arg) for arg in args), file=sys.stdout)
            sys.stdout.flush()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.print(_first_line(trainer, _module(pl_module)))
        self._started = self._shown = time.perf_counter()
        self._first_step, self._num_steps = trainer.global_step, _num_steps(trainer)
        self._shown_step = trainer.global_step
        if self._enabled and self.every_n_steps is None and (kind := _bar_type()) is not None:
            self._bar = kind(
                total=self._num_steps,
                initial=trainer.global_step,
                desc="training",
                bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
                dynamic_ncols=True,
                leave=False,
                file=sys.stdout,
            )

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._learning_rate = optimizer.param_groups[0]["lr"]  # after the step, it is that of the next one

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if not self._enabled or not self._is_due(trainer.global_step):
            return
        self._shown, self._shown_step = time.perf_counter(), trainer.global_step
        module = _module(pl_module)
        state = f"loss {module.steps.last_loss:.3f}, lr {self._learning_rate:.2e}"
        if module.run.tokens_per_second is not None:
            state += f", {module.run.tokens_per_second:,.0f} tokens/s"
        if self._bar:
            self._bar.n = trainer.global_step
            self._bar.set_postfix_str(state)
        else:
            total = "" if self._num_steps is None else f"/{self._num_steps:,}"
            self.print(f"step {trainer.global_step:,}{total}: {state}, {self._shown - self._started:,.0f} s")

    def _is_due(self, step: int) -> bool:
        if step == self._shown_step:  # a micro-batch that does not complete the step
            return False
        if self.every_n_steps is not None:
            return step % self.every_n_steps == 0
        return time.perf_counter() - self._shown >= (self.BAR_EVERY if self._bar else self.LINES_EVERY)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.print(f"step {trainer.global_step:,}: " + _metrics_line(trainer, "val"))
        elif trainer.state.fn == "validate":
            self.print(_metrics_line(trainer, "val"))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.print(_metrics_line(trainer, "test"))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar:
            self._bar.close()
            self._bar = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the summary, after the last checkpoint is written."""
        if not self._started:
            self.print(f"already at step {trainer.global_step:,}; nothing to do")
            return
        run = _module(pl_module).run
        seconds = time.perf_counter() - self._started
        now = f"{trainer.global_step - self._first_step:,} of them since resuming, in " if self._first_step else "in "
        tokens = "" if run.tokens_per_step is None else f", {trainer.global_step * run.tokens_per_step:,} tokens"
        steps = f"{trainer.global_step:,} step{'s' if trainer.global_step != 1 else ''}"
        lines = [f"done: {steps}{tokens}; {now}{seconds:,.0f} s"]
        if run.best_step and "val/loss" in trainer.callback_metrics:
            last = float(trainer.callback_metrics["val/loss"])
            lines.append(f"validation loss: best {run.best_loss:.4f} (step {run.best_step:,}), last {last:.4f}")
        lines += [f"{f'{name}:':16} {relative(path)}" for name, path in sorted(run.files.items())]
        self.print("\n".join(lines))


def relative(path: str | Path | None) -> str:
    """The path relative to the working directory, if it is inside it."""
    if path is None:
        return "nowhere"
    path = Path(path)
    return str(path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path)


def _first_line(trainer: Trainer, module: LitLM) -> str:
    """Parameters, tokens per step, steps, devices and folder of a run."""
    log_dir = trainer.log_dir  # a broadcast: all processes must take part
    devices = f"{trainer.world_size} x {module.device.type}"
    if module.device.type == "cpu":
        devices += f" ({torch.get_num_threads()} threads)"
    elif module.device.type == "cuda":
        devices += f" ({torch.cuda.get_device_name(module.device)})"
    parts = [f"{num_parameters(module.net):,} parameters"]
    num_steps, tokens = _num_steps(trainer), module.run.tokens_per_step
    if tokens is not None:
        description = module.data_info.batch_description
        parts.append(f"{tokens:,} tokens a step" + (f" ({description})" if description else ""))
    if num_steps is not None:
        parts.append(f"{num_steps:,} steps" + ("" if tokens is None else f", {num_steps * tokens:,} tokens"))
    compiled = "" if module.compiled_features is None else ", compiled"
    parts.append(f"{devices}, {trainer.precision}{compiled}")
    parts.append(relative(module.run.folder or log_dir))
    return " | ".join(parts)


def _num_steps(trainer: Trainer) -> int | None:
    """Steps of the whole run; None: unknown."""
    steps = trainer.max_steps if trainer.max_steps > 0 else trainer.estimated_stepping_batches
    return steps if isinstance(steps, int) else None


def _bar_type() -> "type[tqdm[Any]] | None":
    """The kind of progress bar that the output can show; None: none."""
    if sys.stdout.isatty():
        return tqdm  # type: ignore[no-any-return]
    if "ipykernel" in sys.modules and find_spec("ipywidgets") is not None:
        return import_module("tqdm.notebook").tqdm_notebook  # type: ignore[no-any-return]
    return None


def _module(pl_module: LightningModule) -> LitLM:
    assert isinstance(pl_module, LitLM)
    return pl_module


def _metrics_line(trainer: Trainer, stage: str) -> str:
    """Loss, perplexity and bits per byte, then the loss of each source if there are several."""
    names = [f"{stage}/{name}" for name in ("loss", "perplexity", "bits_per_byte", "bits_per_character")]
    names = [name for name in names if name in trainer.callback_metrics]
    names += [name for name in trainer.callback_metrics if name.startswith(f"{stage}/loss/")]
    return ", ".join(f"{name} {float(trainer.callback_metrics[name]):.4f}" for name in names)
