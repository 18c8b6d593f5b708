"""Windows of token stores, and their distribution over the steps of a run."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from lit_lm.data.order import WindowOrder, windows_at
from lit_lm.data.sources import Split
from lit_lm.data.token_store import TokenStore

MAX_STEPS = 2**40
"""Limit beyond every run, so that counts of windows fit into 64 bits."""


class Windows:
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


def check_lengths(
    stores: Mapping[Split, Mapping[str, TokenStore]], context_length: int, *, whole_validation: bool
) -> None:
    """Check that each source has at least a window, which may be cut short in validation data.

    Args:
        stores: Stores of each split, by the label of their source.
        context_length: Tokens per window.
        whole_validation: Whether the validation data, too, must have a whole window.

    Raises:
        ValueError: if one has fewer tokens.
    """
    for split, labeled in stores.items():
        needed = context_length + 1 if split == "train" or whole_validation else 2
        remedy = "more text" if split == "train" else "more validation text, by data.val_source or data.val_fraction"
        if needed > 2:
            remedy += ", or a smaller model.net.context_length"
        for name, store in labeled.items():
            if len(store) < needed:
                raise ValueError(
                    f"the {split} data of {name} has {len(store)} tokens, fewer than one window of {needed}; "
                    f"use {remedy}"
                )


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


def share_out(most: int, sizes: Sequence[int]) -> list[int]:
    """How many windows of each source to read if there may be `most`: all, or else each source's share, at least 1."""
    total = sum(sizes)
    return [size if total <= most else max(1, most * size // total) for size in sizes]
