"""Measuring contenders in turns: each is a separate process that waits while another is measured."""

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

from lit_lm.model.cost import flops_per_token
from lit_lm.training.hardware import measured_peak_flops

ROOT = Path(__file__).parent.parent
TURN = 2.0
"""Approximate duration of a turn in seconds."""
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class Row:
    """A contender in one mode, and its measurements."""

    contender: str
    task: Task
    command: list[str]
    """Command that starts its process, which talks like bench_worker."""
    every: int = 1
    """The number of steps of a turn is a multiple of this."""
    seconds: list[float] = field(default_factory=list)
    """Seconds per step, for each round."""
    peak_bytes: int = 0

    @property
    def name(self) -> str:
        """Contender and mode."""
        return f"{self.contender}, {self.task.precision}, {'compiled' if self.task.compile else 'eager'}"

    @property
    def rates(self) -> list[float]:
        """Tokens per second, for each round."""
        tokens = self.task.batch_size * self.task.config.context_length
        return [tokens / seconds for seconds in self.seconds]

    @property
    def rate(self) -> float:
        """Median tokens per second."""
        return statistics.median(self.rates)

    @property
    def flops(self) -> float:
        """FLOP/s; the FLOPs of every contender are counted by `lit_lm.model.cost.flops_per_token`."""
        config = self.task.config
        if self.contender == "nanoGPT":
            config = replace(config, norm="layernorm", mlp="gelu", positions="learned", d_ff=None, tie_embeddings=True)
        return self.rate * flops_per_token(config)

    def over(self, other: "Row") -> float:
        """Speedup over another row: median of the ratios of all rounds."""
        return statistics.median(theirs / own for own, theirs in zip(self.seconds, other.seconds, strict=True))

    def as_dict(self) -> dict[str, Any]:
        """The row as plain values for JSON."""
        return {"name": self.name, "seconds": self.seconds, "peak_bytes": self.peak_bytes, "task": asdict(self.task)}


def bare(contender: str, task: Task, python: str = sys.executable) -> Row:
    """Row for the step of a contender, run by a Python interpreter that has its packages."""
    worker = str(ROOT / "tools" / "bench_worker.py")
    return Row(contender, task, [python, worker, contender, json.dumps(asdict(task))])


class Worker:
    """Process of a row, after its warm-up."""

    def __init__(self, row: Row, folder: Path) -> None:
        self.row = row
        print(f"starting {row.name}", file=sys.stderr, flush=True)
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tools")]),
            "OMP_NUM_THREADS": str(row.task.threads),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # else idle compile workers stay in memory
        }
        self.process = subprocess.Popen(
            row.command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, encoding="utf-8",
        )  # fmt: skip
        self._answer()

    def take(self, steps: int) -> float:
        """Take steps; returns the seconds per step."""
        assert self.process.stdin is not None
        print(steps, file=self.process.stdin, flush=True)
        return self._answer()

    def steps_of_a_turn(self) -> int:
        """Number of steps that take about TURN seconds."""
        return self.row.every * math.ceil(TURN / self.take(2) / self.row.every)

    def _answer(self) -> float:
        assert self.process.stdout is not None
        others: deque[str] = deque(maxlen=10)
        for line in self.process.stdout:
            if line.startswith('{"seconds"'):
                answer = json.loads(line)
                self.row.peak_bytes = answer["peak_bytes"]
                return float(answer["seconds"])
            others.append(line)  # other output, such as the error that ends the process
        raise SystemExit(f"{self.row.name} ended with exit code {self.process.wait()}:\n" + "".join(others))

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def measure(rows: list[Row], rounds: int, folder: Path) -> None:
    """Measure the rows, with a turn of each in every round. All processes run in `folder`."""
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
    """Measure only the peak memory, in the warm-up steps."""
    with Worker(row, folder):
        pass


def peak_flops(device: str) -> dict[str, float]:
    """Highest FLOP/s of a matrix product in each precision."""
    return {n: max(measured_peak_flops(torch.device(device), dtype) for _ in range(10)) for n, dtype in DTYPES.items()}


def best_peer(rows: list[Row]) -> Row | None:
    """The fastest row of the peers; None: there are no peers."""
    return max((row for row in rows if not row.contender.startswith("lit-lm")), key=lambda row: row.rate, default=None)


def table(rows: list[Row], peaks: dict[str, float]) -> list[str]:
    """Markdown table of the rows."""
    best = best_peer(rows)
    lines = [
        "| | tokens/s (min to max) | GFLOP/s | share of peak | peak memory | relative to fastest peer |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.name} | {row.rate:,.0f} ({min(row.rates):,.0f} to {max(row.rates):,.0f}) | "
            f"{row.flops / 1e9:,.0f} | {row.flops / peaks[row.task.precision]:.0%} | {row.peak_bytes / 1e6:,.0f} MB | "
            f"{f'{row.over(best):.2f}' if best else ''} |"
        )
    return lines
