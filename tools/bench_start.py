"""Time from the start of a command to its first line of output; for `fit`, to the end of its first step.

Run it twice, so that files are in the page cache and the corpus is prepared. The compiled run is one with the shape of
an earlier one. Processor time (user and system, with child processes) depends less on other processes than the clock.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lightning.pytorch import Callback

COMMANDS = {
    "fit": ["fit", "--config=quick"],
    "fit, compiled": ["fit", "--config=quick", "--model.compile=true"],
    "prepare": ["prepare", "--config=quick"],
    "data info": ["data", "info", "--config=quick"],
    "data show": ["data", "show", "--config=quick"],
}
END = "first step"


class FirstStep(Callback):
    """Ends the process after the first step."""

    def on_train_batch_end(self, *_: object) -> None:
        print(END, flush=True)
        os._exit(0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the benchmark."""
    parser.add_argument("--rounds", type=int, default=5, help="processes per command (default: %(default)s)")
    parser.add_argument("--python", default=sys.executable, help="Python of an environment with lit-lm")


def run(options: argparse.Namespace) -> None:
    """Print a table with the medians (minimum to maximum)."""
    print("| command | seconds | processor seconds |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, args in COMMANDS.items():
            measured = [started(options.python, args, Path(folder)) for _ in range(options.rounds)]
            cells = [
                f"{statistics.median(column):.2f} ({min(column):.2f} to {max(column):.2f})"
                for column in zip(*measured, strict=True)
            ]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


def started(python: str, args: list[str], folder: Path) -> tuple[float, float]:
    """Seconds, and processor seconds, of a process up to its first line, or its first step."""
    fits = args[0] == "fit"
    more = [f"--trainer.default_root_dir={folder}", "--trainer.callbacks=bench_start.FirstStep"] if fits else []
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(
        [python, "-m", "lit_lm", *args, *more],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if not fits or line.startswith(END):
            break
    else:
        raise SystemExit(f"lit-lm {' '.join(args)} ended without output")
    seconds = time.perf_counter() - start
    process.kill()
    process.communicate()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
