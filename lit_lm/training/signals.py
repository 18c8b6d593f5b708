"""Signals that stop a run."""

import signal
import threading
from typing import Any

STOP_SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
"""Sent by a scheduler, by Ctrl-C, and by SLURM (`--signal=USR1@90`)."""


class StopRequest:
    """Records the first stop signal. A second signal has its previous effect; SIGTERM ends the process."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def listen(self) -> None:
        """Install the handlers. Does nothing outside the main thread, where Python does not allow it."""
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._remember) for number in STOP_SIGNALS}

    def stop_listening(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _remember(self, number: int, frame: Any) -> None:
        received = signal.Signals(number)
        self.signal = self.signal or received
        # Lightning's handler of SIGTERM would start a broadcast, in which the other processes do not take part
        again = signal.SIG_DFL if received == signal.SIGTERM else self._handlers[received]
        signal.signal(received, again)
