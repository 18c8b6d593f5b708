"""Training: lit-lm's step and the whole of `lit-lm fit` beside the steps of nanoGPT, litgpt and transformers.

Every contender is a process of its own that waits until it is its turn; the rounds take turns, so that whatever else the
machine does hits all of them. A number is the median over the rounds, with the least and the most; a ratio is the
median of the rounds' own. Peers that are not given are left out. Writes train.json and train.png to a folder.
"""

import argparse
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from bench_worker import WARM_UP, Task

from lit_lm.metrics import flops_per_token, measured_peak_flops
from lit_lm.model import Transformer, TransformerConfig

ROOT = Path(__file__).parent.parent
SHAPE = TransformerConfig(
    vocab_size=10_000, d_model=512, num_layers=4, num_heads=16, d_ff=1344, context_length=256
)
BATCH = 8
LONG = replace(SHAPE, vocab_size=50_257, context_length=1024)
"""Where memory is measured."""
SMALLEST = TransformerConfig(vocab_size=300, d_model=16, num_layers=1, num_heads=1, context_length=16)
"""Where a step costs next to nothing, batch 1: what is left is the Trainer."""
TURN = 2.0
"""Seconds that a turn lasts, about."""
LOGGED = 10
"""`fit` logs every so many steps; its turns are multiples of it."""
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
MODES = [(precision, compiled) for precision in DTYPES for compiled in (False, True)]
FIT = "lit-lm fit"


@dataclass
class Row:
    """A contender in one mode, and what was measured of it."""

    contender: str
    task: Task
    seconds: list[float] = field(default_factory=list)
    """Of a step, round by round."""
    peak_bytes: int = 0

    @property
    def name(self) -> str:
        return f"{self.contender}, {self.task.precision}, {'compiled' if self.task.compile else 'eager'}"

    @property
    def tokens(self) -> int:
        """In a step."""
        return self.task.batch_size * self.task.config.context_length

    @property
    def flops_per_token(self) -> float:
        config = self.task.config
        if self.contender == "nanoGPT":
            config = replace(
                config, norm="layernorm", mlp="gelu", positions="learned", d_ff=None, tie_embeddings=True
            )
        with torch.device("meta"):
            return flops_per_token(Transformer(config))

    def over(self, other: "Row") -> float:
        """How many times as many tokens a second."""
        return statistics.median(b / a for a, b in zip(self.seconds, other.seconds, strict=True))


class Worker:
    """The process of a row."""

    def __init__(self, row: Row, command: list[str], folder: Path) -> None:
        self.row = row
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tools")]),
            "OMP_NUM_THREADS": str(row.task.threads),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # its pool of processes would take memory for as long as we run
        }
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
            text=True,
        )  # fmt: skip
        print(f"{row.name} starts", file=sys.stderr, flush=True)
        self.answer()
        seconds = self.turn(WARM_UP)
        self.steps = max(1, round(TURN / seconds))
        if row.contender == FIT:
            self.steps = LOGGED * math.ceil(self.steps / LOGGED)

    def answer(self) -> float:
        """Seconds a step of the turn that is over. The process may print other lines.

        Raises:
            SystemExit: if the process has ended.
        """
        for line in self.process.stdout or ():
            if line.startswith('{"seconds"'):
                answer = json.loads(line)
                self.row.peak_bytes = answer["peak_bytes"]
                return float(answer["seconds"])
        self.errors.seek(0)
        raise SystemExit(f"{self.row.name} ended: " + "".join(self.errors.readlines()[-20:]))

    def turn(self, steps: int) -> float:
        """Let it take steps; seconds each."""
        assert self.process.stdin is not None
        print(steps, file=self.process.stdin, flush=True)
        return self.answer()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def worker(row: Row, args: argparse.Namespace, folder: Path) -> Worker:
    """The contender's process, warmed up."""
    task = row.task
    if row.contender == FIT:
        return Worker(row, fit_command(task, folder), folder)
    python = args.peers if row.contender in ("litgpt", "transformers") else sys.executable
    return Worker(row, [python, str(ROOT / "tools" / "bench_worker.py"), row.contender, json.dumps(asdict(task))], folder)


def fit_command(task: Task, folder: Path) -> list[str]:
    """`lit-lm fit` on a text of its own, as a user runs it, but without validation: a bare loop has none."""
    config = {name: value for name, value in asdict(task.config).items() if value is not None}
    text = folder / "words.txt"
    if not text.exists():
        write_words(text)
    options = {
        "model.net": json.dumps(config), "data.source": str(text), "data.cache_dir": str(folder / "cache"),
        "data.batch_size": task.batch_size, "trainer.accelerator": task.device, "trainer.max_steps": 10**6,
        "trainer.val_check_interval": 10**6, "trainer.callbacks": "bench_fit_turns.FitTurns",
        "trainer.precision": {"float32": "32-true", "bf16": "bf16-mixed"}[task.precision],
    }  # fmt: skip
    return [sys.executable, "-m", "lit_lm", "fit", *(f"--{name}={value}" for name, value in options.items())]


def write_words(path: Path) -> None:
    """2 MB of documents of words of random letters, enough of them for any vocabulary here."""
    random_ = random.Random(0)
    words = ["".join(random_.choices("abcdefghijklmnopqrstuvwxyz", k=random_.randint(3, 9))) for _ in range(20_000)]
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(1500):
            file.write(" ".join(random_.choices(words, k=200)) + "\n<|endoftext|>\n")


def contenders(args: argparse.Namespace) -> list[str]:
    """Those that are given; says which are not."""
    found = []
    for name, option in (("nanoGPT", "nanogpt"), ("litgpt", "peers"), ("transformers", "peers")):
        if getattr(args, option):
            found.append(name)
        else:
            print(f"{name} is left out: no --{option}", file=sys.stderr, flush=True)
    return [*found, "lit-lm"]


def in_turns(rows: list[Row], rounds: int, args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Measure the rows, round by round; the machine's peak FLOP/s in each precision meanwhile."""
    peaks = dict.fromkeys(DTYPES, 0.0)
    with ExitStack() as stack:
        workers = [stack.enter_context(worker(row, args, folder)) for row in rows]
        for number in range(rounds):
            for precision, dtype in DTYPES.items():
                peaks[precision] = max(peaks[precision], measured_peak_flops(torch.device("cpu"), dtype))
            for each in workers:
                each.row.seconds.append(each.turn(each.steps))
                rate = each.row.tokens / each.row.seconds[-1]
                print(f"round {number + 1}: {each.row.name}: {rate:,.0f} tokens/s", file=sys.stderr, flush=True)
    return peaks


def table(rows: list[Row], peaks: dict[str, float], best: Row) -> list[str]:
    """In Markdown."""
    lines = [
        "| | tokens/s (least to most) | GFLOP/s | of the peak | peak memory | to the best peer |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        rates = [row.tokens / seconds for seconds in row.seconds]
        flops = statistics.median(rates) * row.flops_per_token
        lines.append(
            f"| {row.name} | {statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f}) | "
            f"{flops / 1e9:,.0f} | {flops / peaks[row.task.precision]:.0%} | {row.peak_bytes / 1e6:,.0f} MB | "
            f"{row.over(best):.2f} |"
        )
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `tools/bench.py train`."""
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: torch's own")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--peers", type=Path, help="the Python of a venv with litgpt and transformers")
    parser.add_argument("--output", type=Path, default=Path("logs/bench"), help="folder; default: %(default)s")


def run(args: argparse.Namespace) -> None:
    """Measure, and print the tables."""
    torch.set_num_threads(args.threads)
    nanogpt = str(args.nanogpt.absolute()) if args.nanogpt else ""
    names = contenders(args)
    rows = [
        Row(name, Task(SHAPE, BATCH, precision, compiled, threads=args.threads, nanogpt=nanogpt))
        for name in names
        for precision, compiled in MODES
    ]
    rows += [Row(FIT, Task(SHAPE, BATCH, precision, threads=args.threads)) for precision in DTYPES]
    with tempfile.TemporaryDirectory() as name:
        peaks = in_turns(rows, args.rounds, args, Path(name))
        best = min((row for row in rows if row.contender != FIT and row.contender != "lit-lm"), key=lambda row: statistics.median(row.seconds))
        print("\n".join(table(rows, peaks, best)))
        print(peaks)
        for contender in ("nanoGPT", "lit-lm"):
            for precision in DTYPES:
                row = Row(contender, Task(LONG, BATCH, precision, threads=args.threads, nanogpt=nanogpt))
                with worker(row, args, Path(name)):
                    print(row.name, row.peak_bytes / 1e9, flush=True)
        small = [Row(n, Task(SMALLEST, 1, threads=args.threads)) for n in ("lit-lm", FIT)]
        in_turns(small, args.rounds, args, Path(name))
        for row in small:
            print(row.name, row.seconds)
