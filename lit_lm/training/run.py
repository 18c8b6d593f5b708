"""A run as it is on disk: its config, its curves and its checkpoints."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import yaml

from lit_lm.inference.language_model import LanguageModel, load
from lit_lm.runs import find_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Curve = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]
"""Steps (N) and values (N)."""


class Run:
    """A finished or running run, read from its folder.

    >>> run = Run("quick")
    >>> steps, losses = run.curve("val/loss")
    """

    def __init__(self, where: str | Path | None = None) -> None:
        """
        Args:
            where: Name of a run in logs/ or its folder, for its newest version; or a version folder; None: the newest
                run.

        Raises:
            FileNotFoundError: if there is no such run.
        """
        self.folder = find_run(where)

    def __repr__(self) -> str:
        return f"<Run in {self.folder}>"

    @cached_property
    def config(self) -> dict[str, Any]:
        """All options of the run."""
        config: dict[str, Any] = yaml.safe_load((self.folder / "config.yaml").read_text(encoding="utf-8"))
        return config

    @property
    def checkpoints(self) -> dict[str, Path]:
        """Paths of the best and the last checkpoint, as far as they have been written."""
        paths = {which: self.folder / "checkpoints" / f"{which}.ckpt" for which in ("best", "last")}
        return {which: path for which, path in paths.items() if path.exists()}

    @property
    def tags(self) -> list[str]:
        """Names of the curves, such as val/loss."""
        return sorted(self._events().Tags()["scalars"])

    def curve(self, tag: str) -> Curve:
        """Steps and values of a curve that was logged to TensorBoard.

        Raises:
            ValueError: if there is no such curve.
        """
        events = self._events()
        if tag not in (tags := events.Tags()["scalars"]):
            raise ValueError(f"the run has no curve {tag!r}; it has {', '.join(sorted(tags)) or 'none'}")
        points = events.Scalars(tag)
        return np.array([point.step for point in points]), np.array([point.value for point in points])

    @property
    def best_loss(self) -> tuple[int, float]:
        """Step and value of the lowest validation loss.

        Raises:
            ValueError: if the run has not been validated.
        """
        steps, losses = self.curve("val/loss")
        lowest = int(losses.argmin())
        return int(steps[lowest]), float(losses[lowest])

    def plot(self, *tags: str, axes: "Axes | None" = None) -> "Axes":
        """Plot curves over steps.

        Args:
            tags: Names of the curves; none: train/loss and val/loss.
            axes: Where to plot, for example what the `plot` of another run returned; None: a new figure.
        """
        if axes is None:
            from matplotlib.pyplot import subplots

            axes = subplots(layout="constrained")[1]
        name = f"{self.folder.parent.name}/{self.folder.name}"
        for tag in tags or ("train/loss", "val/loss"):
            axes.plot(*self.curve(tag), label=f"{name} {tag}")
        axes.set_xlabel("steps")
        axes.legend()
        return axes

    def load(self, which: str = "best") -> LanguageModel:
        """Load the best or the last checkpoint.

        Raises:
            FileNotFoundError: if it has not been written.
        """
        if which not in (paths := self.checkpoints):
            raise FileNotFoundError(f"{self.folder} has no {which} checkpoint; it has {', '.join(paths) or 'none'}")
        return load(paths[which])

    def _events(self) -> "EventAccumulator":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        return EventAccumulator(str(self.folder), size_guidance={"scalars": 0}).Reload()
