"""A module as a user may write it, with a class for each thing that the command line can name."""

MYLAB = '''\
import math
from collections.abc import Iterator
from pathlib import Path
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from lit_lm.data.datamodule import LMDataModule
from lit_lm.training.module import LitLM

class Lion(torch.optim.Optimizer):
    def __init__(self, params, lr: float = 1e-3, beta: float = 0.9):
        super().__init__(params, {"lr": lr, "beta": beta})

    def step(self, closure=None):
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for p in group["params"]:
                average = self.state[p].setdefault("average", torch.zeros_like(p))
                with torch.no_grad():
                    average.lerp_(p.grad, 1 - group["beta"])
                    p.add_(average.sign(), alpha=-group["lr"])
        return loss

class Halving(torch.optim.lr_scheduler.LRScheduler):
    def __init__(self, optimizer, every: int = 5):
        self.every = every
        self.curve = math.cos
        super().__init__(optimizer)

    def get_lr(self):
        return [base * 0.5 ** (self.last_epoch // self.every) for base in self.base_lrs]

class Halved(LitLM):
    """A model with its own option and loss."""

    def __init__(self, factor: float = 0.5, weights: list[float] | None = None, **options):
        """
        Args:
            factor: Multiplies the loss.
            weights: Not used.
        """
        super().__init__(**options)
        self.factor = factor

    def training_step(self, batch, batch_idx):
        return self.factor * super().training_step(batch, batch_idx)

class Reversed(LMDataModule):
    """A data module with its own option."""

    def __init__(self, flip: bool = True, **options):
        super().__init__(**options)
        self.flip = flip

class Counter(Callback):
    def __init__(self, every: int = 1):
        self.steps = 0

    def on_train_batch_end(self, trainer, *_):
        self.steps += 1

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]

    def on_fit_end(self, trainer, pl_module):
        print(f"counted {self.steps} steps")

class MyLogger(CSVLogger):
    def __init__(self, save_dir: str = "csv"):
        super().__init__(save_dir)

class MyLM(LitLM):
    """A model of one's own."""

class MyData(LMDataModule):
    """Data of one's own."""

class Docs:
    """The files of a folder as documents."""

    def __init__(self, folder: str):
        self.files = sorted(Path(folder).iterdir())

    def __iter__(self) -> Iterator[str]:
        return (part for file in self.files for part in file.read_text(encoding="utf-8").split("<|endoftext|>"))

class Stories:
    """A source of documents."""

    def __init__(self, animal: str, number: int = 60):
        self.animal, self.number, self.fingerprint = animal, number, "1"

    def __iter__(self) -> Iterator[str]:
        return (f"The {self.animal} number {n} saw {n * 7 % 11} birds and ran home." for n in range(self.number))
'''
