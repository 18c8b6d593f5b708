"""`lit-lm fit` as a contender: a callback that lets it train when it is its turn."""

from typing import Any

from bench_worker import Turns
from lightning.pytorch import Callback


class FitTurns(Callback):
    """Counts optimizer steps; everything that `fit` does between two of them is theirs."""

    def __init__(self) -> None:
        self.turns = Turns()

    def on_train_batch_end(self, *_: Any) -> None:
        self.turns.after_step()
