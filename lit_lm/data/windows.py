"""Windows of token stores, and their distribution over steps and devices."""

import math
import signal
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lit_lm.data.order import WindowOrder, windows_at
from lit_lm.data.sources import Split
from lit_lm.data.token_store import TokenStore
from lit_lm.model.losses import IGNORE_INDEX

Batch = tuple[Tensor, Tensor]
"""Inputs and targets, each (B, T) int64; targets equal to IGNORE_INDEX are ignored."""

MAX_STEPS = 2**40
"""Limit beyond every run, so that counts of windows fit into 64 bits."""


class Windows(Dataset[Batch]):
    """Windows of `context_length` inputs and their targets, `stride` tokens apart, in one store after the other."""

    def __init__(self, stores: Sequence[TokenStore], context_length: int, stride: int, *, whole: bool) -> None:
        """`whole`: drop the windows cut short by the end of a store; otherwise pad their targets."""
        self.stores, self.context_length, self.stride = list(stores), context_length, stride
        reach = context_length if whole else 1
        self.sizes = [max(0, (len(store) - 1 - reach) // stride + 1) for store in stores]
        """Number of windows of each store."""
        self._firsts = [0, *accumulate(self.sizes)]

    def __len__(self) -> int:
        return self._firsts[-1]

    def locate(self, index: int) -> tuple[int, int]:
        """Number of the store that contains a window, and the window's first token in the store."""
        store = bisect_right(self._firsts, index) - 1
        return store, (index - self._firsts[store]) * self.stride

    def __getitems__(self, indices: list[int]) -> Batch:
        """One batch. An index past the last window gives only padding."""
        batch = np.full((len(indices), self.context_length + 1), IGNORE_INDEX, dtype=np.int64)
        for row, index in zip(batch, indices, strict=True):
            if index < len(self):
                store, start = self.locate(index)
                ids = self.stores[store].read(start, start + self.context_length + 1)
                row[: len(ids)] = ids
        tokens = torch.from_numpy(batch)
        return tokens[:, :-1].clamp(min=0), tokens[:, 1:]


def check_lengths(stores: Mapping[Split, Mapping[str, TokenStore]], context_length: int, *, held_out: bool) -> None:
    """Check that each source has at least a window.

    Args:
        stores: Stores of each split, by the label of their source.
        context_length: Tokens per window.
        held_out: Whether the validation data is held out, often as a small part of a large text.

    Raises:
        ValueError: if one has fewer tokens.
    """
    for split, labeled in stores.items():
        is_part = held_out and split == "validation"
        needed = context_length + 1 if split == "train" or is_part else 2
        remedy = "use data.val_source, a larger data.val_fraction," if is_part else "use more text"
        for name, store in labeled.items():
            if len(store) < needed:
                raise ValueError(
                    f"the {split} data of {name} has {len(store)} tokens, fewer than one window of {needed}; "
                    f"{remedy} or a smaller model.net.context_length"
                )


STEPS_AT_ONCE = 64
"""Steps whose order is computed together, at little more cost than for one."""


@dataclass(frozen=True)
class WindowSchedule:
    """The training windows of every step."""

    sizes: tuple[int, ...]
    """Number of windows of each source."""
    weights: tuple[float, ...]
    batch_size: int
    seed: int
    order: WindowOrder = "shuffled"

    def step(self, step: int) -> list[int]:
        """Windows of optimizer step `step` (from 1), over all devices."""
        return self.steps(step - 1, step)[0]

    def steps(self, taken: int, until: int) -> list[list[int]]:
        """Windows of each of the steps `taken` + 1 to `until`."""
        positions = np.arange(taken * self.batch_size, until * self.batch_size)
        windows = windows_at(positions, sizes=self.sizes, weights=self.weights, seed=self.seed, order=self.order)
        return windows.reshape(until - taken, self.batch_size).tolist()


class TrainSampler(Sampler[list[int]]):
    """Window indices of this device's micro-batches, from the Trainer's current step to its last.

    The whole run is one Lightning epoch, which may have started in an earlier process.
    """

    def __init__(self, trainer: Trainer, schedule: WindowSchedule, *, micro_batch_size: int) -> None:
        self.trainer, self.schedule, self.micro_batch_size = trainer, schedule, micro_batch_size
        accumulation = schedule.batch_size // (micro_batch_size * trainer.world_size)
        self.num_micro_batches = num_micro_batches(trainer, accumulation)

    def __len__(self) -> int:
        return self.num_micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        per_micro_batch = self.micro_batch_size * self.trainer.world_size
        first = self.trainer.global_rank * self.micro_batch_size
        for taken in range(self.trainer.global_step, self.trainer.max_steps, STEPS_AT_ONCE):
            for windows in self.schedule.steps(taken, min(taken + STEPS_AT_ONCE, self.trainer.max_steps)):
                for begin in range(first, self.schedule.batch_size, per_micro_batch):
                    yield windows[begin : begin + self.micro_batch_size]


def num_micro_batches(trainer: Trainer, accumulation: int) -> int:
    """Number of micro-batches per device in the Trainer's one epoch, including those before the run was resumed."""
    taken = trainer.fit_loop.epoch_loop.batch_progress.current.ready if trainer.fit_loop.restarting else 0
    return (trainer.max_steps - trainer.global_step) * accumulation + taken


class ValidationSampler(Sampler[list[int]]):
    """Every window once, in order, divided over the devices. All devices get the same number of batches."""

    def __init__(self, trainer: Trainer, *, num_windows: int, micro_batch_size: int) -> None:
        self.rank, self.world_size = trainer.global_rank, trainer.world_size
        self.size = min(micro_batch_size, max(1, math.ceil(num_windows / self.world_size)))
        self.num_batches = math.ceil(num_windows / (self.size * self.world_size))

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.num_batches):
            start = (batch * self.world_size + self.rank) * self.size
            yield list(range(start, start + self.size))


def ignore_stop_signals(worker_id: int) -> None:
    """Ignore SIGINT, SIGUSR1 and the first SIGTERM in a DataLoader worker.

    A terminal and a scheduler send them to all processes, and the training process needs its workers to end the step
    and save it; it stops them afterwards.
    """

    def obey_the_next(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, obey_the_next)


def unchanged(batch: Any) -> Any:
    """Collate function for whole batches."""
    return batch


def window_loader(windows: Windows, sampler: Sampler[list[int]], num_workers: int) -> DataLoader[Batch]:
    """Loader of the batches of a sampler."""
    return DataLoader(
        windows,
        batch_sampler=sampler,
        collate_fn=unchanged,
        num_workers=num_workers,
        worker_init_fn=ignore_stop_signals,
        pin_memory=torch.cuda.is_available(),
    )
