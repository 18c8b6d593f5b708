"""The order of windows: a pure function of (seed, position).

Training reads an endless sequence of positions 0, 1, 2, ...; optimizer step s (from 1) of batch size B reads positions
(s - 1) B to s B - 1. Each position belongs to one source; the sources alternate in proportion to their weights. The
p-th position of a source with N windows is index p % N of the shuffle of its epoch p // N. So resuming from any step
needs no saved state, the order does not depend on the number of devices or workers, and a batch that spans two epochs
is not a special case.

The shuffle is a keyed permutation computed index by index, so 10^12 windows take no more memory than 10^3.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

WindowOrder = Literal["shuffled", "random", "sequential"]
Positions = npt.NDArray[np.int64]

NUM_ROUNDS = 8
NUM_TURNS = 10_000
"""Period of the sequence of sources, in positions; weights are exact to one part in NUM_TURNS."""


def windows_at(
    positions: Positions, *, sizes: Sequence[int], weights: Sequence[float], seed: int, order: WindowOrder = "shuffled"
) -> Positions:
    """The window at each position.

    Args:
        positions: Positions in the endless sequence, from 0.
        sizes: Number of windows of each source.
        weights: Share of each source; they sum to 1.
        seed: Seed of the order.
        order: shuffled: every window of a source once per epoch, each epoch in a different order; sequential: in the
            order of the text; random: drawn with replacement.

    Returns:
        Window indices, numbered over all sources: the second source's windows follow those of the first.
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


def weight_problems(weights: Mapping[str, Any]) -> list[str]:
    """What is wrong with the weights of some sources, one message per problem."""
    problems = [] if weights else ["source is empty; pass at least one source"]
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            problems.append(f"the weight of {name} is {weight!r}; it must be a number")
        elif not (math.isfinite(weight) and weight > 0):
            problems.append(f"the weight of {name} is {weight}; it must be more than 0")
    if not problems:
        total = sum(weights.values())
        problems = [
            f"the weight of {name} is {weight}; it must be at least 1/{NUM_TURNS} of the sum of weights"
            for name, weight in weights.items()
            if weight * NUM_TURNS < total
        ]
    return problems


def turns_at(positions: Positions, weights: tuple[float, ...]) -> tuple[Positions, Positions]:
    """For each position: the index of its source, and how many earlier positions that source had."""
    turns, ranks, counts = _turns(weights)
    rounds, slots = np.divmod(positions, NUM_TURNS)
    return turns[slots], rounds * counts[turns[slots]] + ranks[slots]


@cache
def _turns(weights: tuple[float, ...]) -> tuple[Positions, Positions, Positions]:
    """The source of each of NUM_TURNS turns, the number of its earlier turns, and the total turns of each source.

    Each turn goes to the source furthest behind its share, so among any n consecutive positions, a source has its
    share of n to within one turn per source.
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
    """Evaluate a pseudorandom permutation of range(size), chosen by `key`, at the indices.

    A Feistel network over the smallest even number of bits that covers the range. Values outside the range pass
    through the network again until they are inside (cycle walking: Black and Rogaway 2002). The range is more than a
    quarter of the network's, so fewer than four passes are expected.
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
    """The finalizer of splitmix64 (Steele et al. 2014): every input bit affects every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
