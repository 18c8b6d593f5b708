"""Windows of token stores, and which of them a device takes when."""

import math
import signal
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from lit_lm.data.order import Sampling, windows_at
from lit_lm.data.token_store import TokenStore

PADDING = -100
"""Target of a position that counts for nothing: torch's ignore_index."""

Batch = tuple[Tensor, Tensor]
"""Inputs and targets, each (B, T) int64."""


class Windows(Dataset[Batch]):
    """Windows of `context_length` inputs and their targets, `stride` tokens apart, of one store after the other."""

    def __init__(self, stores: Sequence[TokenStore], context_length: int, stride: int, *, whole: bool) -> None:
        """`whole` leaves out a window that a store's end cuts short; otherwise its targets are padded."""
        self.stores, self.context_length, self.stride = list(stores), context_length, stride
        reach = context_length if whole else 1
        self.sizes = [max(0, (len(store) - 1 - reach) // stride + 1) for store in stores]
        """Number of windows of each store."""
        self._firsts = [0, *accumulate(self.sizes)]

    def __len__(self) -> int:
        return self._firsts[-1]

    def place(self, index: int) -> tuple[int, int]:
        """The number of the store that has a window, and the token of it that the window starts at."""
        store = bisect_right(self._firsts, index) - 1
        return store, (index - self._firsts[store]) * self.stride

    def __getitems__(self, indices: list[int]) -> Batch:
        """One batch. An index past the last window gives a window of padding."""
        batch = np.full((len(indices), self.context_length + 1), PADDING, dtype=np.int64)
        for row, index in zip(batch, indices, strict=True):
            if index < len(self):
                store, start = self.place(index)
                ids = self.stores[store].read(start, start + self.context_length + 1)
                row[: len(ids)] = ids
        tokens = torch.from_numpy(batch)
        return tokens[:, :-1].clamp(min=0), tokens[:, 1:]


STEPS_AT_ONCE = 64
"""Whose order is computed together, which costs little more than that of one."""


@dataclass(frozen=True)
class Stream:
    """The windows of every step."""

    sizes: tuple[int, ...]
    """Number of windows of each source."""
    weights: tuple[float, ...]
    batch_size: int
    seed: int
    sampling: Sampling = "shuffled"

    def step(self, step: int) -> list[int]:
        """The windows of optimizer step number `step` (from 0), over all devices."""
        return self.steps(step, step + 1)[0]

    def steps(self, start: int, end: int) -> list[list[int]]:
        """The windows of each of the steps from `start` on and before `end`."""
        positions = np.arange(start * self.batch_size, end * self.batch_size)
        windows = windows_at(positions, sizes=self.sizes, weights=self.weights, seed=self.seed, sampling=self.sampling)
        return windows.reshape(end - start, self.batch_size).tolist()


class TrainOrder(Sampler[list[int]]):
    """Window indices of this device's micro-batches, from the Trainer's present step to its last.

    The Trainer's whole run is one Lightning epoch, which may have begun before this process did.
    """

    def __init__(self, trainer: Trainer, stream: Stream, *, micro_batch_size: int) -> None:
        self.trainer, self.stream, self.micro_batch_size = trainer, stream, micro_batch_size
        self.accumulation = stream.batch_size // (micro_batch_size * trainer.world_size)
        self.num_micro_batches = num_micro_batches(trainer, self.accumulation)

    def __len__(self) -> int:
        return self.num_micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        per_micro_batch = self.micro_batch_size * self.trainer.world_size
        first = self.trainer.global_rank * self.micro_batch_size
        for start in range(self.trainer.global_step, self.trainer.max_steps, STEPS_AT_ONCE):
            for windows in self.stream.steps(start, min(start + STEPS_AT_ONCE, self.trainer.max_steps)):
                for begin in range(first, self.stream.batch_size, per_micro_batch):
                    yield windows[begin : begin + self.micro_batch_size]


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
