"""Benchmark of training: lit-lm's step and all of `lit-lm fit` against the steps of nanoGPT, litgpt and transformers.

Every contender is a separate process. They take turns, so that other load on the machine affects all of them. Numbers
are medians over the rounds, with minimum and maximum; ratios are medians of the ratios in each round. Peers that are
not given are skipped. Prints Markdown tables and whether lit-lm meets its targets; writes train.json and train.png.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from bench_turns import DTYPES, Row, bare, best_peer, measure, measure_memory, peak_flops, table
from bench_worker import Task
from matplotlib.figure import Figure

from lit_lm.model.config import TransformerConfig

SHAPE = TransformerConfig(vocab_size=10_000, d_model=512, num_layers=4, num_heads=16, d_ff=1344, context_length=256)
BATCH = 8
LONG = replace(SHAPE, vocab_size=50_257, context_length=1024, tie_embeddings=True)
"""Shape for measuring memory, with as many parameters as nanoGPT, which ties its embeddings."""
SMALLEST = TransformerConfig(vocab_size=300, d_model=16, num_layers=1, num_heads=1, context_length=16)
"""Shape at which a step with a batch of 1 costs almost nothing, except for the overhead of the Trainer."""
MODES = [(precision, compiled) for precision in DTYPES for compiled in (False, True)]
FIT = "lit-lm fit"
"""`lit-lm fit` with AdamW, like the peers."""
MUON = "lit-lm fit, Muon"
"""`lit-lm fit` with its default optimizer."""
LOG_EVERY = 10
"""Logging interval of `fit`; its turns are multiples of this."""


@dataclass(frozen=True)
class Target:
    """A target of lit-lm, and its measurement."""

    metric: str
    target: str
    measured: str
    met: bool


def fit(task: Task, folder: Path, contender: str = FIT) -> Row:
    """Row for `lit-lm fit` (FIT or MUON) on random text, as a user runs it but without validation, like a bare loop."""
    text = folder / "words.txt"
    if not text.exists():
        write_words(text)
    options = {
        "model.net": json.dumps(asdict(task.config)),
        "data.source": text,
        "data.cache_dir": folder / "cache",
        "data.batch_size": task.batch_size,
        "trainer.accelerator": task.device,
        "trainer.precision": {"float32": "32-true", "bf16": "bf16-mixed"}[task.precision],
        "model.compile": str(task.compile).lower(),
        "model.optimizer": {FIT: "lit_lm.optim.AdamW", MUON: "lit_lm.optim.Muon"}[contender],
        "trainer.max_steps": 10**6,
        "trainer.val_check_interval": 10**6,
        "trainer.log_every_n_steps": LOG_EVERY,
        "trainer.callbacks": "bench_fit.FitTurns",
    }
    command = [sys.executable, "-m", "lit_lm", "fit", *(f"--{name}={value}" for name, value in options.items())]
    return Row(contender, task, command, every=LOG_EVERY)


def write_words(path: Path) -> None:
    """Write 2 MB of documents of random words, enough for any vocabulary here."""
    random_ = random.Random(0)
    words = ["".join(random_.choices("abcdefghijklmnopqrstuvwxyz", k=random_.randint(3, 9))) for _ in range(20_000)]
    documents = (" ".join(random_.choices(words, k=200)) for _ in range(1500))
    path.write_text("\n<|endoftext|>\n".join(documents), encoding="utf-8")


def add_peers(parser: argparse.ArgumentParser) -> None:
    """Add the options for the peers."""
    parser.add_argument("--nanogpt", type=os.path.abspath, default="", help="path of a nanoGPT checkout")
    parser.add_argument("--peers", default="", help="Python interpreter of a venv with litgpt and transformers")


def peers(nanogpt: str, python: str) -> dict[str, str]:
    """The given peers, each with its Python interpreter; prints which are skipped.

    Raises:
        SystemExit: if a given peer is not found.
    """
    if nanogpt and not Path(nanogpt, "model.py").exists():
        raise SystemExit(f"--nanogpt {nanogpt} has no model.py; pass the path of a nanoGPT checkout")
    if not nanogpt:
        print("skipping nanoGPT: --nanogpt is not given", file=sys.stderr)
    if not python:
        print("skipping litgpt and transformers: --peers is not given", file=sys.stderr)
    found = {"nanoGPT": sys.executable} if nanogpt else {}
    return found | dict.fromkeys(versions(python), os.path.abspath(python))


def versions(python: str) -> dict[str, str]:
    """Versions of litgpt and transformers in a Python interpreter; empty if `python` is empty."""
    if not python:
        return {}
    packages = ("litgpt", "transformers")
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    try:
        done = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", "") or str(error)).splitlines()[-1]
        raise SystemExit(f"--peers {python} is not a Python with {' and '.join(packages)}: {reason}") from None
    return dict(zip(packages, done.stdout.split(), strict=True))


@dataclass(frozen=True)
class Results:
    """All measurements."""

    peaks: dict[str, float]
    """FLOP/s of a matrix product in each precision."""
    steps: list[Row]
    """Every contender in every mode, and `lit-lm fit`."""
    memory: list[Row]
    """nanoGPT and lit-lm at LONG; only their peak memory is measured."""
    trainer: list[Row]
    """The bare step and `fit` at SHAPE, in bf16 and compiled."""
    smallest: list[Row]
    """The bare step and `fit` at SMALLEST."""


def measure_all(args: argparse.Namespace, folder: Path) -> Results:
    """Measure one group of rows after the other."""
    pythons = peers(args.nanogpt, args.peers) | {"lit-lm": sys.executable}
    of_all = {"threads": args.threads, "nanogpt": args.nanogpt}
    tasks = [Task(SHAPE, BATCH, precision, compiled, **of_all) for precision, compiled in MODES]
    steps = [bare(name, task, python) for name, python in pythons.items() for task in tasks]
    steps += [fit(tasks[0], folder), fit(tasks[-1], folder, MUON), fit(tasks[-1], folder)]
    memory = [
        bare(name, Task(LONG, BATCH, precision, compiled, **of_all))
        for name in ("nanoGPT", "lit-lm")
        if name in pythons
        for precision, compiled in MODES
    ]
    least = Task(SMALLEST, 1, **of_all)
    trainer = [replace(bare("lit-lm", tasks[-1]), every=LOG_EVERY), fit(tasks[-1], folder)]
    smallest = [bare("lit-lm", least), fit(least, folder)]
    measure(steps, args.rounds, folder)
    for row in memory:
        measure_memory(row, folder)
    for pair in (trainer, smallest):
        measure(pair, 2 * args.rounds, folder)  # a difference of a few percent needs more rounds
    return Results(peak_flops("cpu"), steps, memory, trainer, smallest)


def targets(results: Results) -> list[Target]:
    """The targets and whether they are met, except those whose peers are not given."""
    found = []
    fastest = results.steps[-1]
    if best := best_peer(results.steps):
        found.append(_at_least(f"{fastest.name}, relative to {best.name}, the fastest peer", 1.3, fastest.over(best)))
    for row in results.steps:
        if row.contender not in ("lit-lm", FIT) and (row.task.precision, row.task.compile) == MODES[0]:
            found.append(_at_least(f"{fastest.name}, relative to {row.name}", 2.2, fastest.over(row)))
    place = f"peak memory at vocabulary {LONG.vocab_size:,}, context {LONG.context_length:,}"
    ours = {(r.task.precision, r.task.compile): r.peak_bytes for r in results.memory if r.contender == "lit-lm"}
    for row in results.memory:
        if row.contender != "lit-lm":
            times = row.peak_bytes / ours[row.task.precision, row.task.compile]
            found.append(_at_least(f"{place}: {row.name}, relative to lit-lm", 2.0, times))
    loop, whole = results.trainer
    cost = 1 / whole.over(loop) - 1
    found.append(Target(f"{whole.name}: cost over the bare loop", "at most 3 %", f"{cost:.1%}", cost <= 0.03))
    loop, whole = results.smallest
    cost = statistics.median(b - a for a, b in zip(loop.seconds, whole.seconds, strict=True))
    metric = "smallest model: cost of a step of fit over that of the bare loop"
    found.append(Target(metric, "at most 0.6 ms", f"{1e3 * cost:.2f} ms", cost <= 0.6e-3))
    return found


def _at_least(metric: str, times: float, measured: float) -> Target:
    return Target(metric, f"at least {times} times", f"{measured:.2f}", measured >= times)


def report(results: Results, about: dict[str, Any]) -> str:
    """All results in Markdown."""
    lines = [", ".join(f"{name} {value}" for name, value in about.items()), ""]
    lines += table(results.steps, results.peaks)
    peaks = ", ".join(f"{name} {peak / 1e9:,.0f} GFLOP/s" for name, peak in results.peaks.items())
    lines += ["", f"Peak of a matrix product: {peaks}.", "", "| | peak memory |", "|---|---|"]
    lines += [f"| {row.name} | {row.peak_bytes / 1e6:,.0f} MB |" for row in results.memory]
    lines += ["", "| | ms per step (min to max) |", "|---|---|"]
    for row in (*results.trainer, *results.smallest):
        times = sorted(1e3 * seconds for seconds in row.seconds)
        size = f"d_model {row.task.config.d_model}"
        lines.append(f"| {row.name}, {size} | {statistics.median(times):.2f} ({times[0]:.2f} to {times[-1]:.2f}) |")
    lines += ["", "| metric | target | measured | result |", "|---|---|---|---|"]
    for each in targets(results):
        lines.append(f"| {each.metric} | {each.target} | {each.measured} | {'met' if each.met else 'not met'} |")
    return "\n".join(lines)


def picture(rows: list[Row], path: Path) -> None:
    """Plot tokens per second of every row, with minimum and maximum."""
    colours = {name: f"C{number}" for number, name in enumerate(dict.fromkeys(row.contender for row in rows))}
    figure = Figure(figsize=(8, 0.3 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        spread = [[row.rate - min(row.rates)], [max(row.rates) - row.rate]]
        axes.barh(row.name, row.rate, xerr=spread, color=colours[row.contender], ecolor="0.3")
    axes.invert_yaxis()
    axes.set_xlabel("training, tokens a second")
    figure.savefig(path, dpi=150)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tools/bench.py train`."""
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: torch's own")
    add_peers(parser)
    parser.add_argument("--output", type=Path, default=Path("logs/bench"), help="folder; default: %(default)s")


def run(args: argparse.Namespace) -> None:
    """Measure, print the tables, and write train.json and train.png."""
    torch.set_num_threads(args.threads)
    about = {"date": str(date.today()), "torch": torch.__version__, **versions(args.peers), "rounds": args.rounds}
    about |= {"cores": os.cpu_count(), "threads": args.threads, "CPU": torch.backends.cpu.get_cpu_capability()}
    with tempfile.TemporaryDirectory() as folder:
        results = measure_all(args, Path(folder))
    print(report(results, about))
    args.output.mkdir(parents=True, exist_ok=True)
    rows = {
        name: [row.as_dict() for row in getattr(results, name)] for name in ("steps", "memory", "trainer", "smallest")
    }
    found = {"about": about, "peak_flops": results.peaks, "targets": [asdict(each) for each in targets(results)]} | rows
    (args.output / "train.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
    picture(results.steps, args.output / "train.png")
