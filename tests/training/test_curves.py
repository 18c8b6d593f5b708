"""The plot of the loss curves."""

import math
from pathlib import Path
from typing import Any

import matplotlib.figure
import pytest

from lit_lm.training.curves import HALF_WINDOW, LossCurves


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Draws some points, and returns the figure."""
    figures: list[matplotlib.figure.Figure] = []
    original = matplotlib.figure.Figure.savefig

    def save(self: matplotlib.figure.Figure, *args: Any, **kwargs: Any) -> None:
        figures.append(self)
        original(self, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", save)

    def draw(train: list[tuple[int, float]], val: list[tuple[int, float]]) -> matplotlib.figure.Figure:
        curves = LossCurves()
        curves.history = {"train/loss": train, "val/loss": val}
        curves.draw(tmp_path / "sub" / "curves.png", 1024)
        assert (tmp_path / "sub" / "curves.png").read_bytes().startswith(b"\x89PNG")
        return figures[-1]

    return draw


def lines(axes: Any) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): list(zip(*map(list, line.get_data()), strict=True)) for line in axes.lines}


def test_the_panels_show_different_things(drawn: Any) -> None:
    train = [(step, 8 / step + step % 2) for step in range(1, 60)]
    val = [(20, 1.5), (40, 1.0)]
    left, right = drawn(train, val).axes
    assert lines(left)["val/loss"] == val
    assert lines(right)["train/loss, each logged batch"] == train
    assert "val/loss" not in lines(right)
    mean = lines(left)["train/loss, running mean"]
    assert mean == lines(right)["running mean"]
    window = [loss for _, loss in train[30 - HALF_WINDOW : 30 + HALF_WINDOW + 1]]
    assert mean[30] == (31, pytest.approx(math.fsum(window) / len(window)))
    assert mean[0] == train[0]
    assert mean[1] == (2, pytest.approx(sum(loss for _, loss in train[:3]) / 3))
    assert mean[-1] == (59, pytest.approx(sum(loss for _, loss in train[-HALF_WINDOW - 1 :]) / (HALF_WINDOW + 1)))
    assert left.get_yscale() == right.get_yscale() == "log"
    (tokens,) = left.child_axes
    assert tokens.get_xlim() == pytest.approx(tuple(1024 * limit for limit in left.get_xlim()))


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ([], []),
        ([(1, 5.0)], []),
        ([(1, math.nan), (2, math.inf), (3, 0.0)], [(3, math.nan)]),
        ([(n, 3.0 + n / 100) for n in range(1, 20)], [(19, 3.1)]),
    ],
)
def test_any_losses_can_be_drawn(drawn: Any, train: list[tuple[int, float]], val: list[tuple[int, float]]) -> None:
    left, _ = drawn(train, val).axes
    if len(train) > 3:
        low, high = left.get_ylim()
        assert sum(low <= tick <= high for tick in left.get_yticks()) >= 2
