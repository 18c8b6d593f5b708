"""Plot of a run's loss curves."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_lm.training.module import LitLM

Point = tuple[int, float]
"""Step and loss."""

HALF_WINDOW = 5
"""Logged batches before and after each that its running mean includes."""


class LossCurves(Callback):
    """Writes `loss_curves.png` to the run's folder.

    Left: training loss as a running mean, and validation loss, over steps and tokens. Right: the loss of each logged
    batch, and the running mean, over the logarithm of the step, which shows the beginning.
    """

    FILE = "loss_curves.png"

    def __init__(self) -> None:
        self.history: dict[str, list[Point]] = {"train/loss": [], "val/loss": []}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, LitLM)
        if trainer.global_step and pl_module.logs_at(trainer.global_step):
            self._add("train/loss", trainer.global_step, pl_module.run.loss)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and "val/loss" in trainer.callback_metrics:
            self._add("val/loss", trainer.global_step, float(trainer.callback_metrics["val/loss"]))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LitLM)
        log_dir = trainer.log_dir  # a broadcast: all processes must take part
        if trainer.is_global_zero:
            path = (pl_module.run.folder or Path(log_dir or trainer.default_root_dir)) / self.FILE
            self.draw(path, pl_module.run.tokens_per_step or 1)
            pl_module.run.files["loss curves"] = path

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = {name: [tuple(point) for point in points] for name, points in state_dict["history"].items()}

    def _add(self, name: str, step: int, loss: float) -> None:
        points = self.history[name]
        if not points or points[-1][0] < step:
            points.append((step, loss))

    def draw(self, path: Path, tokens_per_step: int) -> None:
        """Plot the history to `path`."""
        from matplotlib.figure import Figure  # takes half a second to import
        from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

        path.parent.mkdir(parents=True, exist_ok=True)
        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        train, validation = (_drawable(self.history[name]) for name in ("train/loss", "val/loss"))
        _plot(left, _smoothed(train), label="train/loss, running mean")
        _plot(left, validation, label="val/loss", marker="o", markersize=4)
        _plot(right, train, label="train/loss, each logged batch", alpha=0.4)
        _plot(right, _smoothed(train), label="running mean", color="C0")
        left.set_ylabel("loss (nats per token)")
        right.set_xscale("log")
        right.xaxis.set_major_formatter("{x:,.0f}")
        for axes in (left, right):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter("{x:g}")
            axes.set_xlabel("step")
            axes.grid(alpha=0.3)
            if axes.lines:
                axes.legend()
        scale = float(tokens_per_step)
        tokens = left.secondary_xaxis("top", functions=(lambda steps: steps * scale, lambda tokens: tokens / scale))
        tokens.xaxis.set_major_formatter(EngFormatter(sep=""))
        tokens.set_xlabel("tokens")
        figure.savefig(path, dpi=120)


def _drawable(points: Sequence[Point]) -> list[Point]:
    """The points that a logarithmic axis can show."""
    return [(step, loss) for step, loss in points if 0 < loss < math.inf]


def _smoothed(points: Sequence[Point]) -> list[Point]:
    """The mean of each point and the HALF_WINDOW points on either side; of fewer where there are not as many."""
    smoothed = []
    for number, (step, _) in enumerate(points):
        half = min(number, HALF_WINDOW)  # at the beginning, where the loss falls fast, as many on both sides
        losses = [loss for _, loss in points[number - half : number + half + 1]]
        smoothed.append((step, sum(losses) / len(losses)))
    return smoothed


def _plot(axes: Any, points: Sequence[Point], **style: Any) -> None:
    if points:
        axes.plot(*zip(*points, strict=True), **style)
