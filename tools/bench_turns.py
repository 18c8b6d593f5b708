"""Contenders that take turns: each is a process of its own, and waits while another one is measured."""

import json
import math
import os
import statistics
import subprocess
import sys
from collections import deque
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from bench_worker import Task

from lit_lm.model.flops import flops_per_token
from lit_lm.model.transformer import Transformer
from lit_lm.training.hardware import measured_peak_flops

ROOT = Path(__file__).parent.parent
TURN = 2.0
"""Seconds that a turn lasts, about."""
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class Row:
    """A contender in one mode, and what was measured of it."""

    contender: str
    task: Task
    command: list[str]
    """Starts its process, which answers as bench_worker's does."""
    every: int = 1
    """Its turns are multiples of so many steps."""
    seconds: list[float] = field(default_factory=list)
    """Of a step, round by round."""
    peak_bytes: int = 0

    @property
    def name(self) -> str:
        """Contender and mode."""
        return f"{self.contender}, {self.task.precision}, {'compiled' if self.task.compile else 'eager'}"

    @property
    def rates(self) -> list[float]:
        """Tokens a second, round by round."""
        tokens = self.task.batch_size * self.task.config.context_length
        return [tokens / seconds for seconds in self.seconds]

    @property
    def rate(self) -> float:
        """Their median."""
        return statistics.median(self.rates)

    @property
    def flops(self) -> float:
        """FLOP/s, counted for every contender by `lit_lm.model.flops.flops_per_token`."""
        config = self.task.config
        if self.contender == "nanoGPT":
            config = replace(config, norm="layernorm", mlp="gelu", positions="learned", d_ff=None, tie_embeddings=True)
        with torch.device("meta"):
            return self.rate * flops_per_token(Transformer(config))

    def over(self, other: "Row") -> float:
        """How many times as fast: median of the rounds' ratios."""
        return statistics.median(theirs / own for own, theirs in zip(self.seconds, other.seconds, strict=True))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"name": self.name, "seconds": self.seconds, "peak_bytes": self.peak_bytes, "task": asdict(self.task)}


def bare(contender: str, task: Task, python: str = sys.executable) -> Row:
    """A contender's step alone, run by an interpreter that has it."""
    worker = str(ROOT / "tools" / "bench_worker.py")
    return Row(contender, task, [python, worker, contender, json.dumps(asdict(task))])


class Worker:
    """The process of a row, warmed up."""

    def __init__(self, row: Row, folder: Path) -> None:
        self.row = row
        print(f"{row.name} starts", file=sys.stderr, flush=True)
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tools")]),
            "OMP_NUM_THREADS": str(row.task.threads),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # else idle compilers stay in memory
        }
        self.process = subprocess.Popen(
            row.command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, encoding="utf-8",
        )  # fmt: skip
        self._answer()

    def take(self, steps: int) -> float:
        """Have it take steps; seconds of each."""
        assert self.process.stdin is not None
        print(steps, file=self.process.stdin, flush=True)
        return self._answer()

    def steps_of_a_turn(self) -> int:
        """As many as last about TURN."""
        return self.row.every * math.ceil(TURN / self.take(2) / self.row.every)

    def _answer(self) -> float:
        assert self.process.stdout is not None
        others: deque[str] = deque(maxlen=10)
        for line in self.process.stdout:
            if line.startswith('{"seconds"'):
                answer = json.loads(line)
                self.row.peak_bytes = answer["peak_bytes"]
                return float(answer["seconds"])
            others.append(line)  # what it prints besides, and why it ends
        raise SystemExit(f"{self.row.name} ended with exit code {self.process.wait()}:\n" + "".join(others))

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def measure(rows: list[Row], rounds: int, folder: Path) -> None:
    """Fill in the rows, all at work in the folder, a turn of each in every round."""
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(row, folder)) for row in rows]
        steps = [worker.steps_of_a_turn() for worker in workers]
        for number in range(rounds):
            for worker, each in zip(workers, steps, strict=True):
                worker.row.seconds.append(worker.take(each))
                print(
                    f"round {number + 1}: {worker.row.name}: {worker.row.rates[-1]:,.0f}", file=sys.stderr, flush=True
                )


def measure_memory(row: Row, folder: Path) -> None:
    """Fill in the peak memory alone, that of the first steps."""
    with Worker(row, folder):
        pass


def peak_flops(device: str) -> dict[str, float]:
    """The best that a matrix product reaches in each precision."""
    return {n: max(measured_peak_flops(torch.device(device), dtype) for _ in range(10)) for n, dtype in DTYPES.items()}


def best_peer(rows: list[Row]) -> Row | None:
    """The fastest in its best mode."""
    return max((row for row in rows if not row.contender.startswith("lit-lm")), key=lambda row: row.rate, default=None)


def table(rows: list[Row], peaks: dict[str, float]) -> list[str]:
    """In Markdown."""
    best = best_peer(rows)
    lines = [
        "| | tokens/s (least to most) | GFLOP/s | of the peak | peak memory | to the best peer |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.name} | {row.rate:,.0f} ({min(row.rates):,.0f} to {max(row.rates):,.0f}) | "
            f"{row.flops / 1e9:,.0f} | {row.flops / peaks[row.task.precision]:.0%} | {row.peak_bytes / 1e6:,.0f} MB | "
            f"{f'{row.over(best):.2f}' if best else ''} |"
        )
    return lines
