"""The server, as its command starts it."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Post = Callable[[str, object], Any]
"""Asks the server without the page: a path and what to send to it."""

SLOW = """
import sys, time
from lit_lm.__main__ import main
from lit_lm.inference.batch import Batch

step = Batch.step

def slow(self):
    time.sleep(0.05)
    return step(self)

Batch.step = slow
main(sys.argv[1:])
"""
"""A server whose model takes 50 ms for a token, so that a test can act while it writes."""


@contextmanager
def serving(*arguments: object, slow: bool = False) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`lit-lm serve` with these arguments: its address and its process."""
    program = ["-c", SLOW] if slow else ["-m", "lit_lm"]
    command = [sys.executable, *program, "serve", *map(str, arguments), "--port=0", "--device=cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address = re.search(r"http://\S+", process.stdout.readline())
            assert address is not None
            yield address[0], process
        finally:
            process.terminate()
