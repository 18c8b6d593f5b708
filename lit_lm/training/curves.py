"""Plot of a run's loss curves."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_lm.training.module import LitLM


class LossCurves(Callback):
    """Writes `loss_curves.png` to the run's folder: training and validation loss over steps and over tokens."""

    FILE = "loss_curves.png"

    def __init__(self) -> None:
        self.history: dict[str, list[tuple[int, float]]] = {"train/loss": [], "val/loss": []}

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

        path.parent.mkdir(parents=True, exist_ok=True)
        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, scale, label in [(left, 1, "steps"), (right, tokens_per_step, "tokens seen")]:
            for name, points in self.history.items():
                if points:
                    steps, losses = zip(*points, strict=True)
                    marker = "o" if name == "val/loss" else ""
                    axes.plot([step * scale for step in steps], losses, label=name, marker=marker)
            axes.set_xlabel(label)
            axes.grid(alpha=0.3)
        left.set_ylabel("loss (nats per token)")
        right.legend()
        figure.savefig(path, dpi=120)
