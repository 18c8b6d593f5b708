"""The server, as its command starts it."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Post = Callable[[str, object], Any]
"""Asks the server without the page: a path and what to send to it."""


@contextmanager
def serving(*arguments: object) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`lit-lm serve` with these arguments: its address and its process."""
    command = [sys.executable, "-m", "lit_lm", "serve", *map(str, arguments), "--port=0", "--device=cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address = re.search(r"http://\S+", process.stdout.readline())
            assert address is not None
            yield address[0], process
        finally:
            process.terminate()
