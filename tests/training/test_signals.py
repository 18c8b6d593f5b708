"""The effect of a second stop signal."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from lit_lm.training.signals import STOP_SIGNALS, StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_second_sigterm_ends_the_process_and_other_signals_have_their_previous_effect(
    number: signal.Signals,
) -> None:
    def previous(*_: object) -> None: ...

    original: Callable[..., Any] | int | None = signal.signal(number, previous)
    try:
        request = StopRequest()
        request.listen()
        os.kill(os.getpid(), number)
        assert request.signal == number
        assert signal.getsignal(number) == (signal.SIG_DFL if number == signal.SIGTERM else previous)
        request.stop_listening()
        assert signal.getsignal(number) == previous
    finally:
        signal.signal(number, original)


def test_the_first_of_different_signals_counts() -> None:
    """At the limit of its time, SLURM sends SIGTERM after the SIGUSR1 that requeues a job."""
    originals = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        request = StopRequest()
        request.listen()
        for number in (signal.SIGUSR1, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert request.signal == signal.SIGUSR1
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        for number, handler in originals.items():
            signal.signal(number, handler)
