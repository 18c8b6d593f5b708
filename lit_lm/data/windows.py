"""Windows of a token store, and which of them a device takes when."""

import math
import signal
from collections.abc import Iterator

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from lit_lm.data.order import window_at
from lit_lm.data.token_store import TokenStore

PADDING = -100
"""Target of a position that counts for nothing: torch's ignore_index."""

Batch = tuple[Tensor, Tensor]
"""Inputs and targets, each (B, T) int64."""


class Windows(Dataset[Batch]):
    """Windows of `context_length` inputs and their targets, `stride` tokens apart."""

    def __init__(self, store: TokenStore, context_length: int, stride: int, *, whole: bool) -> None:
        """`whole` leaves out a window that the store's end cuts short; otherwise its targets are padded."""
        self.store, self.context_length, self.stride = store, context_length, stride
        reach = context_length if whole else 1
        self.num_windows = max(0, (len(store) - 1 - reach) // stride + 1)

    def __len__(self) -> int:
        return self.num_windows

    def __getitems__(self, indices: list[int]) -> Batch:
        """One batch. An index past the last window gives a window of padding."""
        batch = np.full((len(indices), self.context_length + 1), PADDING, dtype=np.int64)
        for row, index in zip(batch, indices, strict=True):
            if index < self.num_windows:
                start = index * self.stride
                ids = self.store.read(start, start + self.context_length + 1)
                row[: len(ids)] = ids
        tokens = torch.from_numpy(batch)
        return tokens[:, :-1].clamp(min=0), tokens[:, 1:]


class TrainOrder(Sampler[list[int]]):
    """Window indices of this device's micro-batches, from the Trainer's present step to its last.

    The Trainer's whole run is one Lightning epoch, which may have begun before this process did.
    """

    def __init__(
        self, trainer: Trainer, *, num_windows: int, batch_size: int, micro_batch_size: int, seed: int
    ) -> None:
        self.trainer = trainer
        self.num_windows, self.batch_size, self.micro_batch_size, self.seed = (
            num_windows,
            batch_size,
            micro_batch_size,
            seed,
        )
        self.accumulation = batch_size // (micro_batch_size * trainer.world_size)
        self.num_micro_batches = num_micro_batches(trainer, self.accumulation)

    def __len__(self) -> int:
        return self.num_micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.trainer.global_step, self.trainer.max_steps):
            positions = step * self.batch_size + np.arange(self.batch_size)
            windows = window_at(positions, num_windows=self.num_windows, seed=self.seed)
            shares = windows.reshape(self.accumulation, self.trainer.world_size, self.micro_batch_size)
            for micro_batch in shares[:, self.trainer.global_rank]:
                yield micro_batch.tolist()


def num_micro_batches(trainer: Trainer, accumulation: int) -> int:
    """Micro-batches of a device in the Trainer's one epoch, those among them that another process has taken."""
    taken = trainer.fit_loop.epoch_loop.batch_progress.current.ready if trainer.fit_loop.restarting else 0
    return (trainer.max_steps - trainer.global_step) * accumulation + taken


class ValidationOrder(Sampler[list[int]]):
    """Every window once, in order, spread over the devices; each device gets as many batches as the others."""

    def __init__(self, trainer: Trainer, *, num_windows: int, micro_batch_size: int) -> None:
        self.rank, self.world_size, self.size = trainer.global_rank, trainer.world_size, micro_batch_size
        self.num_batches = math.ceil(num_windows / (micro_batch_size * trainer.world_size))

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.num_batches):
            start = (batch * self.world_size + self.rank) * self.size
            yield list(range(start, start + self.size))


def outlive_a_signal(worker_id: int) -> None:
    """Have a worker pass over a first SIGTERM.

    A scheduler sends it to all processes, and the training process needs its workers to end the step and save it.
    """

    def obey_the_next(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, obey_the_next)
