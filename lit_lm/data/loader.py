"""Batches of windows, and their distribution over devices. Needs torch and Lightning, unlike `lit_lm.data.windows`."""

import math
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lit_lm.data.windows import Windows, WindowSchedule
from lit_lm.model.losses import IGNORE_INDEX

Batch = tuple[Tensor, Tensor]
"""Inputs and targets, each (B, T) int64; targets equal to IGNORE_INDEX are ignored."""

STEPS_AT_ONCE = 64
"""Steps whose order is computed together, at little more cost than for one."""


class WindowDataset(Dataset[Batch]):
    """Batches of some of the windows."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitems__(self, indices: list[int]) -> Batch:
        """One batch. An index past the last window gives only padding."""
        windows = self.windows
        batch = np.full((len(indices), windows.context_length + 1), IGNORE_INDEX, dtype=np.int64)
        for row, index in zip(batch, indices, strict=True):
            if index < len(windows):
                store, start = windows.locate(index)
                ids = windows.stores[store].read(start, start + windows.context_length + 1)
                row[: len(ids)] = ids
        tokens = torch.from_numpy(batch)
        return tokens[:, :-1].clamp(min=0), tokens[:, 1:]


def data_share(trainer: Trainer) -> tuple[int, int]:
    """Number of this process among those that read different windows, and how many these are.

    The processes of a tensor-parallel group read the same windows.
    """
    size: int = getattr(trainer.strategy, "tensor_parallel_size", 1)
    return trainer.global_rank // size, trainer.world_size // size


class TrainSampler(Sampler[list[int]]):
    """Window indices of this device's micro-batches, from the Trainer's current step to its last.

    The whole run is one Lightning epoch, which may have started in an earlier process.
    """

    def __init__(self, trainer: Trainer, schedule: WindowSchedule, *, micro_batch_size: int) -> None:
        self.trainer, self.schedule, self.micro_batch_size = trainer, schedule, micro_batch_size
        self.rank, self.devices = data_share(trainer)
        accumulation = schedule.batch_size // (micro_batch_size * self.devices)
        self.num_micro_batches = num_micro_batches(trainer, accumulation)

    def __len__(self) -> int:
        return self.num_micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        per_micro_batch = self.micro_batch_size * self.devices
        first = self.rank * self.micro_batch_size
        for taken in range(self.trainer.global_step, self.trainer.max_steps, STEPS_AT_ONCE):
            for windows in self.schedule.steps(taken, min(taken + STEPS_AT_ONCE, self.trainer.max_steps)):
                for begin in range(first, self.schedule.batch_size, per_micro_batch):
                    yield windows[begin : begin + self.micro_batch_size]


def num_micro_batches(trainer: Trainer, accumulation: int) -> int:
    """Number of micro-batches per device in the Trainer's one epoch, including those before the run was resumed."""
    taken = trainer.fit_loop.epoch_loop.batch_progress.current.ready if trainer.fit_loop.restarting else 0
    return (trainer.max_steps - trainer.global_step) * accumulation + taken


class ValidationSampler(Sampler[list[int]]):
    """Windows at equal distances, in order, divided over the devices. All devices get the same number of batches."""

    def __init__(self, trainer: Trainer, *, num_windows: int, num_read: int, micro_batch_size: int) -> None:
        """`num_read`: number of the `num_windows` windows to read, always the same ones."""
        self.rank, self.devices = data_share(trainer)
        self.num_windows, self.num_read = num_windows, num_read
        self.size = min(micro_batch_size, max(1, math.ceil(num_read / self.devices)))
        self.num_batches = math.ceil(num_read / (self.size * self.devices))

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.num_batches):
            start = (batch * self.devices + self.rank) * self.size
            # from number num_read on, past the last window
            yield [number * self.num_windows // self.num_read for number in range(start, start + self.size)]


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
        WindowDataset(windows),
        batch_sampler=sampler,
        collate_fn=unchanged,
        num_workers=num_workers,
        worker_init_fn=ignore_stop_signals,
        pin_memory=torch.cuda.is_available(),
    )
