"""Which window comes when: a pure function of (seed, position).

Training reads an endless sequence of positions 0, 1, 2, ...; optimizer step s (from 1) of batch size B takes the
positions (s - 1) B to s B - 1. Each position belongs to one of the sources, by turns that keep to their weights. The
p-th position of a source is in epoch p // N of its N windows, at index p % N of that epoch's shuffle. Nothing has to be
saved to resume from any step, nothing depends on how many devices or workers share a batch, and a batch that spans two
epochs is not a special case.

The shuffle is a keyed permutation computed index by index, so 10^12 windows take no more memory than 10^3.
"""

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt

WindowOrder = Literal["shuffled", "random", "sequential"]
Positions = npt.NDArray[np.int64]

NUM_ROUNDS = 8
NUM_TURNS = 10_000
"""Positions after which the turns of the sources repeat: weights are exact to one part in this many."""


def windows_at(
    positions: Positions, *, sizes: Sequence[int], weights: Sequence[float], seed: int, order: WindowOrder = "shuffled"
) -> Positions:
    """The window at each position.

    Args:
        positions: Positions in the endless sequence, from 0.
        sizes: Number of windows of each source.
        weights: Share of each source, adding up to 1.
        seed: Chooses the order.
        order: shuffled: every window of a source once an epoch, each epoch in another order; sequential: in the order
            of the text; random: drawn from all windows, with replacement.

    Returns:
        Window indices, counted through the sources: those of the second follow the last of the first.
    """
    sources, ranks = turns_at(positions, tuple(weights))
    windows = np.empty_like(ranks)
    first = 0
    for source, size in enumerate(sizes):
        here = sources == source
        if here.any():
            windows[here] = first + _window_of(ranks[here], size=size, seed=seed, order=order)
        first += size
    return windows


def turns_at(positions: Positions, weights: tuple[float, ...]) -> tuple[Positions, Positions]:
    """For each position: the index of its source, and how many earlier positions that source had."""
    turns, ranks, counts = _turns(weights)
    rounds, slots = np.divmod(positions, NUM_TURNS)
    return turns[slots], rounds * counts[turns[slots]] + ranks[slots]


@cache
def _turns(weights: tuple[float, ...]) -> tuple[Positions, Positions, Positions]:
    """The source at each of NUM_TURNS turns, the earlier turns of that source, and the turns of each source in all.

    Each turn goes to the source that is furthest behind its share, so in any stretch of n positions a source has its
    share of n, give or take less than one turn for each source.
    """
    shares = np.array(weights) / sum(weights)
    counts = np.zeros(len(weights), dtype=np.int64)
    turns, ranks = np.empty(NUM_TURNS, dtype=np.int64), np.empty(NUM_TURNS, dtype=np.int64)
    for turn in range(NUM_TURNS):
        source = int(np.argmax(shares * (turn + 1) - counts))
        turns[turn], ranks[turn] = source, counts[source]
        counts[source] += 1
    return turns, ranks, counts


def _window_of(ranks: Positions, *, size: int, seed: int, order: WindowOrder) -> Positions:
    epochs, in_epoch = np.divmod(ranks, size)
    if order == "sequential":
        return in_epoch
    if order == "random":
        key = int.from_bytes(hashlib.blake2b(f"{seed}:random".encode(), digest_size=8).digest(), "little")
        drawn = _mix(_mix(ranks.astype(np.uint64) + np.uint64(1)) ^ np.uint64(key))
        return (drawn % np.uint64(size)).astype(np.int64)
    windows = np.empty_like(ranks)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        windows[here] = permute(in_epoch[here], size=size, key=f"{seed}:{epoch}")
    return windows


def permute(indices: Positions, *, size: int, key: str) -> Positions:
    """A permutation of range(size) that `key` chooses, at the given indices.

    A Feistel network over the smallest even number of bits that hold the range; what falls outside the range is sent
    through again until it falls inside (cycle walking: Black and Rogaway 2002). The range is more than a quarter of
    the network's, so fewer than four rounds through it are expected.
    """
    half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    digest = hashlib.blake2b(key.encode(), digest_size=8 * NUM_ROUNDS).digest()
    round_keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
    values = indices.astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        values[outside] = _feistel(values[outside], half_bits, mask, round_keys)
        outside = values >= size
    return values.astype(np.int64)


def _feistel(
    values: npt.NDArray[np.uint64], half_bits: np.uint64, mask: np.uint64, round_keys: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    left, right = values >> half_bits, values & mask
    for round_key in round_keys:
        left, right = right, left ^ (_mix(right ^ round_key) & mask)
    return (left << half_bits) | right


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of splitmix64 (Steele et al. 2014): every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
