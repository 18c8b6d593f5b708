"""Which window comes when: a pure function of (seed, position).

Training reads an endless stream of positions 0, 1, 2, ...; optimizer step s of batch size B takes the positions
[s B, (s + 1) B). Position p is in epoch p // N of the N windows, at place p % N of that epoch's shuffle. Nothing has to
be saved to go on from any step, nothing depends on how many devices or workers share a batch, and a batch that spans
two epochs is not a special case.

The shuffle is a keyed permutation computed place by place, so 10^12 windows take no more memory than 10^3.
"""

import hashlib

import numpy as np
import numpy.typing as npt

NUM_ROUNDS = 8


def window_at(positions: npt.NDArray[np.int64], *, num_windows: int, seed: int) -> npt.NDArray[np.int64]:
    """The window at each position of the stream: every window once an epoch, each epoch in another order."""
    epochs, places = np.divmod(positions, num_windows)
    windows = np.empty_like(places)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        windows[here] = permute(places[here], size=num_windows, key=f"{seed}:{epoch}")
    return windows


def permute(places: npt.NDArray[np.int64], *, size: int, key: str) -> npt.NDArray[np.int64]:
    """A permutation of range(size) that `key` chooses, at the given places.

    A Feistel network over the smallest even number of bits that hold the range; what falls outside the range is sent
    through again until it falls inside (cycle walking: Black and Rogaway 2002). The range is more than a quarter of
    the network's, so fewer than four rounds through it are expected.
    """
    half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    digest = hashlib.blake2b(key.encode(), digest_size=8 * NUM_ROUNDS).digest()
    round_keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
    values = places.astype(np.uint64)
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
