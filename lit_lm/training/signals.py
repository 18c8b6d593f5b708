"""Signals that ask a run to stop."""

import signal
import threading
from typing import Any

STOP_SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
"""Requests to stop: from a scheduler, from a person, from SLURM (`--signal=USR1@90`)."""


class StopRequest:
    """Remembers the first signal that asks to stop; a second one does what it would have done without us."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def listen(self) -> None:
        """Handle the signals from now on. Python allows that in the main thread alone; elsewhere nothing is done."""
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._remember) for number in STOP_SIGNALS}

    def stop_listening(self) -> None:
        """Give the signals back to who handled them before."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _remember(self, number: int, frame: Any) -> None:
        self.signal = signal.Signals(number)
        signal.signal(number, self._handlers[self.signal])
