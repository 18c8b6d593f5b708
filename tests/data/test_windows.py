"""The content of windows, and their distribution over steps and devices."""

from itertools import chain, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lit_lm.data.loader import TrainSampler, ValidationSampler, WindowDataset
from lit_lm.data.token_store import StoreWriter, TokenStore
from lit_lm.data.tokenize import Chunk
from lit_lm.data.windows import Windows, WindowSchedule, share_out
from lit_lm.model.losses import IGNORE_INDEX, cross_entropy


def store_of(path: Path, start: int, stop: int) -> TokenStore:
    tokenizer: Any = SimpleNamespace(vocab_size=300, fingerprint="t", to_json=lambda: "{}")
    writer = StoreWriter(path, "s", tokenizer, 1)
    writer.write(0, [Chunk(np.arange(start, stop), 1, stop - start, stop - start)], lambda: 0)
    return writer.finish()


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    """The ids 0 to 99."""
    return store_of(tmp_path / "store", 0, 100)


def trainer(rank: int = 0, world_size: int = 1, step: int = 0, max_steps: int = 10, group: int = 1) -> Any:
    return SimpleNamespace(
        global_rank=rank, world_size=world_size, global_step=step, max_steps=max_steps,
        fit_loop=SimpleNamespace(restarting=False), strategy=SimpleNamespace(tensor_parallel_size=group),
    )  # fmt: skip


def test_the_loss_ignores_padding(store: TokenStore) -> None:
    windows = Windows([store], context_length=8, stride=8, whole=False)
    _, targets = WindowDataset(windows).__getitems__([len(windows)])
    assert torch.equal(targets, torch.full((1, 8), IGNORE_INDEX))
    assert cross_entropy(torch.randn(8, 300), targets[0]) == 0


@pytest.mark.parametrize("stride", [1, 7, 8, 30])
def test_training_windows_are_complete_and_a_stride_apart(store: TokenStore, stride: int) -> None:
    windows = Windows([store], context_length=8, stride=stride, whole=True)
    inputs, targets = WindowDataset(windows).__getitems__(list(range(len(windows))))
    starts = torch.arange(0, 100 - 8, stride)  # the last target is at most token 99
    assert torch.equal(inputs, starts[:, None] + torch.arange(8))
    assert torch.equal(targets, inputs + 1)


@pytest.mark.parametrize("context_length", [1, 8, 11, 33, 99, 150])
def test_validation_windows_predict_each_token_once(store: TokenStore, context_length: int) -> None:
    windows = Windows([store], context_length, stride=context_length, whole=False)
    inputs, targets = WindowDataset(windows).__getitems__(
        list(range(len(windows) + 2))
    )  # two windows of only padding at the end
    counted = targets != IGNORE_INDEX
    assert targets[counted].tolist() == list(range(1, 100))
    assert torch.equal(inputs[counted] + 1, targets[counted])
    assert not counted[-2:].any()


@pytest.mark.parametrize(
    "schedule",
    [
        WindowSchedule((50,), (1.0,), batch_size=12, seed=3),
        WindowSchedule((50,), (1.0,), batch_size=12, seed=3, order="random"),
        WindowSchedule((50, 7), (0.7, 0.3), batch_size=12, seed=3),
    ],
    ids=["one source", "random", "mixture"],
)
@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(1, 12), (1, 3), (2, 6), (2, 2), (3, 4), (4, 1)])
def test_a_step_has_the_same_windows_on_any_number_of_devices(
    schedule: WindowSchedule, world_size: int, micro_batch_size: int
) -> None:
    def windows_of(world_size: int, micro_batch_size: int) -> list[list[int]]:
        """The windows of each of 10 steps, over all devices."""
        orders = [
            list(TrainSampler(trainer(rank, world_size), schedule, micro_batch_size=micro_batch_size))
            for rank in range(world_size)
        ]
        assert {len(order) for order in orders} == {10 * 12 // (world_size * micro_batch_size)}
        shares = chain.from_iterable(zip(*orders, strict=True))
        flat = list(chain.from_iterable(shares))
        return [sorted(flat[step * 12 : step * 12 + 12]) for step in range(10)]

    assert windows_of(world_size, micro_batch_size) == windows_of(1, 12)
    assert windows_of(1, 12) == [sorted(schedule.step(step)) for step in range(1, 11)]


def test_the_processes_of_a_tensor_parallel_group_read_the_same_windows() -> None:
    schedule = WindowSchedule((50,), (1.0,), batch_size=12, seed=3)
    orders = [list(TrainSampler(trainer(rank, 6, group=2), schedule, micro_batch_size=2)) for rank in range(6)]
    groups = [list(TrainSampler(trainer(rank, 3), schedule, micro_batch_size=2)) for rank in range(3)]
    assert orders == [groups[0], groups[0], groups[1], groups[1], groups[2], groups[2]]


def test_an_epoch_has_every_window_once_even_if_a_step_spans_two() -> None:
    sampler = TrainSampler(
        trainer(max_steps=25), WindowSchedule((50,), (1.0,), batch_size=4, seed=0), micro_batch_size=4
    )
    order = [index for batch in sampler for index in batch]
    assert sorted(order[:50]) == sorted(order[50:]) == list(range(50))
    assert order[:50] != order[50:]


def test_a_sampler_that_starts_later_yields_the_rest_of_the_run() -> None:
    schedule = WindowSchedule((50, 7), (0.7, 0.3), batch_size=4, seed=0)
    whole = list(TrainSampler(trainer(), schedule, micro_batch_size=2))
    later = list(TrainSampler(trainer(step=7), schedule, micro_batch_size=2))
    assert later == whole[14:]


def test_windows_never_cross_the_boundaries_of_stores(tmp_path: Path) -> None:
    stores = [store_of(tmp_path / str(n), *bounds) for n, bounds in enumerate([(0, 40), (100, 105), (200, 233)])]
    windows = Windows(stores, context_length=8, stride=8, whole=True)
    inputs, targets = WindowDataset(windows).__getitems__(list(range(len(windows))))
    assert windows.sizes == [4, 0, 4]
    assert inputs[:, 0].tolist() == [0, 8, 16, 24, 200, 208, 216, 224]
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(8))
    assert torch.equal(targets, inputs + 1)
    assert [windows.locate(index) for index in (0, 3, 4, 7)] == [(0, 0), (0, 24), (2, 0), (2, 24)]


@pytest.mark.parametrize("num_windows", [1, 2, 11, 12, 13])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("micro_batch_size", [2, 2**64])
def test_each_window_is_validated_once_and_devices_get_equally_many_batches(
    num_windows: int, world_size: int, micro_batch_size: int
) -> None:
    orders = [
        list(
            ValidationSampler(
                trainer(rank, world_size), num_windows=num_windows, num_read=num_windows,
                micro_batch_size=micro_batch_size,
            )
        )
        for rank in range(world_size)
    ]  # fmt: skip
    assert len({len(order) for order in orders}) == 1
    indices = [index for order in orders for batch in order for index in batch]
    assert sorted(index for index in indices if index < num_windows) == list(range(num_windows))
    assert len(set(indices)) == len(indices)


@pytest.mark.parametrize(("num_windows", "num_read"), [(20, 5), (13, 5), (10**10 + 1, 9)])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_windows_of_a_large_validation_set_are_at_equal_distances_and_the_same_on_any_number_of_devices(
    num_windows: int, num_read: int, world_size: int
) -> None:
    samplers = [
        ValidationSampler(trainer(rank, world_size), num_windows=num_windows, num_read=num_read, micro_batch_size=2)
        for rank in range(world_size)
    ]
    read = sorted(index for order in samplers for batch in order for index in batch if index < num_windows)
    distances = {after - before for before, after in pairwise([*read, num_windows])}
    assert len(read) == num_read
    assert read[0] == 0
    assert distances <= {num_windows // num_read, num_windows // num_read + 1}


@pytest.mark.parametrize(
    ("most", "sizes", "expected"),
    [(10, [4, 6], [4, 6]), (9, [4, 6], [3, 5]), (5, [100, 1], [4, 1]), (10**6, [10**12, 10**12], [500_000, 500_000])],
)
def test_sources_share_the_windows_of_a_validation_in_proportion_to_their_sizes(
    most: int, sizes: list[int], expected: list[int]
) -> None:
    assert share_out(most, sizes) == expected
