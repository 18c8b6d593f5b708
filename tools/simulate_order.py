"""Simulation of the order of windows in a large run: each window is used once per epoch, whatever the number of ranks.

Each check prints what it has shown. Every round of the Feistel network can be inverted, and cycle walking keeps that,
so the order is a permutation of any number of windows (docs/scale.md). The checks show that the code does this: one
epoch completely, and, of as many windows as no machine could count, samples with the inverse permutation.
"""

import argparse
import hashlib
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from lit_lm.data.loader import TrainSampler
from lit_lm.data.order import NUM_ROUNDS, Positions, _mix, permute, windows_at
from lit_lm.data.windows import WindowSchedule

AT_ONCE = 2**20
"""Positions whose windows are computed together."""


def inverse(windows: Positions, *, size: int, key: str) -> Positions:
    """The index of each window: the inverse of `permute`, with its rounds in reverse."""
    half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    digest = hashlib.blake2b(key.encode(), digest_size=8 * NUM_ROUNDS).digest()
    values, outside = windows.astype(np.uint64), np.ones(len(windows), dtype=bool)
    while outside.any():
        left, right = values[outside] >> half_bits, values[outside] & mask
        for round_key in np.frombuffer(digest, dtype="<u8").astype(np.uint64)[::-1]:
            left, right = right ^ (_mix(left ^ round_key) & mask), left
        values[outside] = (left << half_bits) | right
        outside = values >= size
    return values.astype(np.int64)


def check_epoch(num_windows: int, seed: int) -> str:
    """Count how often each window occurs in the second epoch."""
    seen = np.zeros(num_windows, dtype=np.uint8)
    for start in range(num_windows, 2 * num_windows, AT_ONCE):
        positions = np.arange(start, min(start + AT_ONCE, 2 * num_windows))
        seen[windows_at(positions, sizes=[num_windows], weights=[1.0], seed=seed)] += 1
    assert (seen == 1).all(), "a window occurs not once"
    return f"{num_windows:,} windows: each of them occurs once in an epoch (all were counted)"


def check_inverse(num_windows: int, samples: int, seed: int) -> str:
    """Permute random indices and invert the result, and the other way round."""
    drawn = np.random.default_rng(seed).integers(num_windows, size=samples)
    key = f"{seed}:0"
    assert (inverse(permute(drawn, size=num_windows, key=key), size=num_windows, key=key) == drawn).all()
    assert (permute(inverse(drawn, size=num_windows, key=key), size=num_windows, key=key) == drawn).all()
    return f"{num_windows:,} windows: the inverse returns each of {samples:,} random indices, in both directions"


def batches(schedule: WindowSchedule, ranks: int, step: int) -> Iterator[list[int]]:
    """The micro-batches that the samplers of all ranks yield for a step (from 1)."""
    for rank in range(ranks):
        trainer: Any = SimpleNamespace(
            global_rank=rank, world_size=ranks, global_step=step - 1, max_steps=step,
            fit_loop=SimpleNamespace(restarting=False), strategy=None,
        )  # fmt: skip
        yield from TrainSampler(trainer, schedule, micro_batch_size=schedule.batch_size // ranks)


def check_ranks(num_windows: int, batch_size: int, ranks: int, num_steps: int, seed: int) -> str:
    """Compare what all ranks read in steps at equal distances over an epoch with the batches of these steps."""
    schedule = WindowSchedule((num_windows,), (1.0,), batch_size, seed)
    steps = [1 + number * (num_windows // batch_size) // num_steps for number in range(num_steps)]
    read = []
    for step in steps:
        of_step = [window for batch in batches(schedule, ranks, step) for window in batch]
        assert of_step == schedule.step(step), f"step {step}: the ranks read other windows than the schedule's"
        read += of_step
    assert len(set(read)) == len(read) == num_steps * batch_size, "a window is read twice"
    return (
        f"{num_windows:,} windows: {ranks:,} ranks read {len(read):,} different ones in {num_steps} steps of an epoch"
    )


def main() -> None:
    """Run all checks, and print the time to compute a step's windows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", type=int, default=10**12, help="windows to sample (default: 10^12)")
    parser.add_argument("--small", type=int, default=10**8, help="windows to count (default: 10^8)")
    parser.add_argument("--ranks", type=int, default=1024, help="processes (default: 1024)")
    parser.add_argument("--batch_size", type=int, default=2048, help="windows a step (default: 2048)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order (default: 0)")
    options = parser.parse_args()
    seed, batch_size, ranks = options.seed, options.batch_size, options.ranks
    print(check_epoch(options.small, seed))
    # a whole epoch on all ranks
    epoch = 16 * batch_size
    print(check_ranks(epoch, batch_size, ranks, 16, seed))
    print(check_ranks(options.large, batch_size, ranks, 16, seed))
    print(check_inverse(options.large, 10**6, seed))
    schedule = WindowSchedule((options.large,), (1.0,), batch_size, seed)
    for step in (0, options.large // batch_size - 64):
        begun = time.process_time()
        schedule.steps(step, step + 64)
        print(f"windows of a step, from step {step + 1:,} on: {(time.process_time() - begun) / 64 * 1e3:.2f} ms of CPU")


if __name__ == "__main__":
    main()
