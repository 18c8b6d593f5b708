"""The order of windows: a permutation, a pure function, statistically random, and never to change."""

import tracemalloc
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_lm.data.order import NUM_TURNS, permute, turns_at, windows_at


def shuffled(size: int, key: str = "0:0") -> npt.NDArray[np.int64]:
    return permute(np.arange(size), size=size, key=key)


def window_at(positions: npt.NDArray[np.int64], *, num_windows: int, **options: Any) -> npt.NDArray[np.int64]:
    """The window at each position with one source."""
    return windows_at(positions, sizes=[num_windows], weights=[1.0], **({"seed": 0} | options))


@given(st.integers(1, 3000), st.text(max_size=5))
def test_every_index_occurs_once(size: int, key: str) -> None:
    assert sorted(shuffled(size, key)) == list(range(size))


@pytest.mark.parametrize("size", [1, 2, 3, *(2**n + d for n in (2, 3, 4, 5, 8, 9, 12) for d in (-1, 0, 1))])
def test_every_index_occurs_once_around_powers_of_two(size: int) -> None:
    assert sorted(shuffled(size)) == list(range(size))


def test_indices_can_be_permuted_in_any_order_and_number() -> None:
    whole = shuffled(1000)
    indices = np.array([999, 0, 500, 500, 3])
    assert permute(indices, size=1000, key="0:0").tolist() == whole[indices].tolist()
    assert permute(np.array([], dtype=np.int64), size=1000, key="0:0").shape == (0,)


def test_arguments_are_not_modified() -> None:
    indices = np.arange(10)
    permute(indices, size=10, key="0:0")
    windows_at(indices, sizes=[4, 6], weights=[0.5, 0.5], seed=0)
    windows_at(indices, sizes=[10], weights=[1.0], seed=0, order="random")
    assert indices.tolist() == list(range(10))


def test_every_order_of_four_indices_occurs() -> None:
    assert len({tuple(shuffled(4, str(key))) for key in range(300)}) == 24


def test_the_order_depends_on_the_key() -> None:
    orders = [shuffled(1000, key) for key in ("0:0", "0:1", "1:0", "10:0", "0:10")]
    for i, first in enumerate(orders):
        for second in orders[i + 1 :]:
            assert (first == second).sum() < 10  # 1 expected by chance


def test_permuting_a_trillion_indices_needs_little_memory() -> None:
    size = 10**12
    indices = np.append(np.linspace(0, size - 1, 1000, dtype=np.int64), [1, 2, 3])
    tracemalloc.start()
    windows = permute(indices, size=size, key="0:0")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
    assert len(set(windows.tolist())) == len(indices)
    assert windows.min() >= 0
    assert windows.max() < size
    assert windows.mean() == pytest.approx(size / 2, rel=0.05)


@pytest.mark.parametrize("size", [1000, 4096, 5000])
def test_neighbours_are_uncorrelated(size: int) -> None:
    windows = shuffled(size).astype(float)
    assert np.abs(np.diff(windows)).mean() == pytest.approx(size / 3, rel=0.05)
    for lag in (1, 2, 3, 64):
        assert abs(np.corrcoef(windows[:-lag], windows[lag:])[0, 1]) < 3 / np.sqrt(size)


@pytest.mark.parametrize("index", [0, 1, 999])
def test_an_index_is_uniformly_distributed_over_keys(index: int) -> None:
    indices = np.array([index])
    windows = [int(permute(indices, size=1000, key=f"{key}:0")[0]) for key in range(2000)]
    counts = np.bincount(np.array(windows) // 100, minlength=10)
    chi_square = ((counts - 200) ** 2 / 200).sum()
    assert chi_square < 27.9  # p = 0.001 at 9 degrees of freedom


@given(st.integers(1, 40), st.integers(0, 5), st.integers(1, 30))
def test_the_sequence_consists_of_whole_epochs_for_any_batch_size(num_windows: int, seed: int, cut: int) -> None:
    positions = np.arange(3 * num_windows)
    sequence = window_at(positions, num_windows=num_windows, seed=seed)
    parts = [
        window_at(positions[i : i + cut], num_windows=num_windows, seed=seed) for i in range(0, len(sequence), cut)
    ]
    assert np.concatenate(parts).tolist() == sequence.tolist()
    for epoch in sequence.reshape(3, num_windows):
        assert sorted(epoch) == list(range(num_windows))


def test_a_batch_may_span_two_epochs() -> None:
    first, second = shuffled(10, "7:0"), shuffled(10, "7:1")
    batch = window_at(np.arange(8, 13), num_windows=10, seed=7)
    assert batch.tolist() == [*first[8:], *second[:3]]


def test_every_epoch_and_seed_has_a_different_order() -> None:
    epochs = [window_at(np.arange(500) + 500 * epoch, num_windows=500, seed=0) for epoch in range(4)]
    epochs += [window_at(np.arange(500), num_windows=500, seed=seed) for seed in (1, 2)]
    assert all((earlier == later).sum() < 10 for earlier, later in pairwise(epochs))


def test_the_order_never_changes() -> None:
    """Runs must resume from old checkpoints: if this fails, change the code, not the numbers."""
    assert shuffled(10).tolist() == [8, 1, 5, 2, 6, 7, 4, 3, 9, 0]
    indices = np.array([0, 1, 10**12 - 1])
    assert permute(indices, size=10**12, key="42:3").tolist() == [1043064659, 834337057923, 21162354832]
    assert window_at(np.arange(6), num_windows=4, seed=1).tolist() == [2, 3, 0, 1, 1, 3]
    assert window_at(np.arange(6), num_windows=4, seed=1, order="random").tolist() == [2, 1, 3, 0, 0, 1]
    mixed = windows_at(np.arange(8), sizes=[4, 6], weights=[0.7, 0.3], seed=1)
    assert mixed.tolist() == [2, 5, 3, 0, 1, 6, 1, 3]


WEIGHTS = st.lists(st.integers(1, 100), min_size=1, max_size=8)


@settings(max_examples=25)
@given(WEIGHTS, st.integers(0, 3 * NUM_TURNS), st.integers(1, NUM_TURNS))
def test_each_source_has_its_share_of_any_consecutive_positions(weights: list[int], start: int, length: int) -> None:
    shares = tuple(weight / sum(weights) for weight in weights)
    sources, _ = turns_at(np.arange(start, start + length), shares)
    counts = np.bincount(sources, minlength=len(shares))
    allowed = len(shares) + (
        start // NUM_TURNS != (start + length) // NUM_TURNS
    )  # the sequence of turns restarts in between
    assert np.abs(counts - np.array(shares) * length).max() <= allowed


@settings(max_examples=25)
@given(WEIGHTS, st.integers(0, 2 * NUM_TURNS))
def test_the_ranks_of_a_source_are_consecutive(weights: list[int], start: int) -> None:
    shares = tuple(weight / sum(weights) for weight in weights)
    sources, ranks = turns_at(np.arange(start, start + NUM_TURNS), shares)
    for source in range(len(shares)):
        own = ranks[sources == source]
        assert np.array_equal(own, np.arange(own[0], own[0] + len(own)))


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0,), (1 / 3,) * 3, (0.9999, 0.0001), (0.5, 0.4999, 0.0001)])
def test_every_source_has_a_turn_and_its_first_rank_is_0(weights: tuple[float, ...]) -> None:
    sources, ranks = turns_at(np.arange(NUM_TURNS), weights)
    assert [int(ranks[sources == source].min()) for source in range(len(weights))] == [0] * len(weights)


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 9)), min_size=1, max_size=4), st.integers(0, 5))
def test_in_a_mixture_every_window_occurs_once_per_epoch_of_its_source(
    sources: list[tuple[int, int]], seed: int
) -> None:
    sizes, weights = (list(column) for column in zip(*sources, strict=True))
    weights = [weight / sum(weights) for weight in weights]
    windows = windows_at(np.arange(2000), sizes=sizes, weights=weights, seed=seed)
    for first, size in zip(accumulate([0, *sizes]), sizes, strict=False):
        own = windows[(windows >= first) & (windows < first + size)]
        assert len(own) >= size
        for epoch in np.split(own, range(size, len(own), size)):
            assert len(set(epoch.tolist())) == len(epoch)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=3), st.integers(0, 10**15), st.integers(1, 30))
def test_random_windows_are_within_bounds_and_independent_of_batch_size(sizes: list[int], start: int, cut: int) -> None:
    def windows(positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return windows_at(positions, sizes=sizes, weights=[1 / len(sizes)] * len(sizes), seed=3, order="random")

    positions = np.arange(start, start + 200)
    whole = windows(positions)
    assert whole.min() >= 0
    assert whole.max() < sum(sizes)
    assert np.concatenate([windows(positions[i : i + cut]) for i in range(0, 200, cut)]).tolist() == whole.tolist()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("start", [0, 10**12])
def test_random_windows_are_uniform_and_uncorrelated(seed: int, start: int) -> None:
    windows = window_at(np.arange(start, start + 20_000), num_windows=1000, seed=seed, order="random")
    chi_square = ((np.bincount(windows, minlength=1000) - 20) ** 2 / 20).sum()
    assert 860 < chi_square < 1143  # two-sided p = 0.002 at 999 degrees of freedom
    pairs = np.bincount(windows[:-1] // 100 * 10 + windows[1:] // 100, minlength=100)
    assert ((pairs - 200) ** 2 / 200).sum() < 149  # p = 0.001 at 99 degrees of freedom


def test_random_windows_differ_between_seeds() -> None:
    one, other = (window_at(np.arange(1000), num_windows=1000, seed=seed, order="random") for seed in (0, 1))
    assert (one == other).sum() < 10


def test_sequential_windows_are_in_the_order_of_the_text() -> None:
    assert window_at(np.arange(7), num_windows=3, order="sequential").tolist() == [0, 1, 2, 0, 1, 2, 0]
    mixed = windows_at(np.arange(6), sizes=[3, 2], weights=[0.5, 0.5], seed=0, order="sequential")
    assert mixed[mixed < 3].tolist() == [0, 1, 2]
    assert mixed[mixed >= 3].tolist() == [3, 4, 3]
