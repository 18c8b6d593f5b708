"""The simulation of the order of windows, at small sizes."""

from typing import Any

import numpy as np
import pytest
import simulate_order
from simulate_order import check_epoch, check_inverse, check_ranks

from lit_lm.data.order import permute


@pytest.mark.parametrize("num_windows", [1, 5, 1023, 1024, 1025])
def test_the_inverse_is_that_of_the_permutation(num_windows: int) -> None:
    windows = permute(np.arange(num_windows), size=num_windows, key="3:0")
    assert simulate_order.inverse(windows, size=num_windows, key="3:0").tolist() == list(range(num_windows))


def test_a_trillion_windows_are_permuted_and_divided_over_1024_ranks() -> None:
    assert check_inverse(10**12, 10_000, seed=1)
    assert check_ranks(10**12, 1024, 1024, 2, seed=1)
    assert check_epoch(300_001, seed=1)


def test_an_order_that_repeats_a_window_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def repeated(indices: Any, *, size: int, key: str) -> Any:
        return permute(indices, size=size, key=key) // 2 * 2

    monkeypatch.setattr("lit_lm.data.order.permute", repeated)
    with pytest.raises(AssertionError, match="occurs not once"):
        check_epoch(100, seed=0)
    with pytest.raises(AssertionError, match="read twice"):
        check_ranks(64, 8, 4, 8, seed=0)
