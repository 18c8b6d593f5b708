"""`lit-lm fit` as a contender: a callback that makes it train in turns."""

from typing import Any

from bench_worker import Turns
from lightning.pytorch import Callback


class FitTurns(Callback):
    """Counts steps; the time between two steps, whatever `fit` does in it, counts for the second."""

    def __init__(self) -> None:
        self.turns = Turns()

    def on_train_batch_end(self, *_: Any) -> None:
        self.turns.after_step()
