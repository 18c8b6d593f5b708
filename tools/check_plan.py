"""Compare `lit-lm plan` with `lit-lm fit`: memory and time of eight configs, as a table in Markdown.

    python tools/check_plan.py

Takes about six minutes on a machine on which nothing else runs. Each config trains a few steps on the bundled stories,
which are prepared first, because that can take more memory than the training.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lit_lm.cli.plan import MEASURED, planned_run
from lit_lm.cli.plan_options import Options
from lit_lm.planning.memory import step_memory
from lit_lm.training.run import Run

STORIES = ["--data.source=stories"]
COMPILE, EAGER = ["--model.compile=true"], ["--model.compile=false"]
CONFIGS = {
    "shakespeare-char, Muon, float32, eager": ["--config=shakespeare-char", *STORIES, *EAGER],
    "quick, Muon, float32, compiled": ["--config=quick", *COMPILE],
    "chinese, Muon, float32, eager": ["--config=chinese", *EAGER],
    "sizes/4x256, AdamW, bf16, eager": [
        "--config=quick", "--model.net=sizes/4x256", "--model.optimizer=AdamW", "--data.batch_size=8", *EAGER,
    ],
    "small, AdamW, bf16, compiled": ["--config=small", *STORIES, "--data.batch_size=16", *COMPILE],
    "small, AdamW, float32, eager": [
        "--config=small", *STORIES, "--data.batch_size=8", "--trainer.precision=32-true", *EAGER,
    ],
    "sizes/medium, Muon, bf16, eager": [
        "--config=chinese", "--model.net=sizes/medium", "--data.batch_size=4", "--data.micro_batch_size=2", *EAGER,
    ],
    "gpt2-124m, AdamW, bf16, eager": [
        "--config=gpt2-124m", *STORIES, "--data.batch_size=4", "--data.micro_batch_size=2", *EAGER,
    ],
}  # fmt: skip
"""Arguments of `lit-lm fit`, from 0.8 M to 124 M parameters."""
SECONDS = 8
"""Planned time of the steps of a config."""
LEAST_STEPS = 4
SKIPPED = 2
"""First steps that are not timed: the optimizer's state is made, and a compiled step is compiled."""
SHORT = [
    "--trainer.limit_val_batches=1", "--trainer.log_every_n_steps=1", "--trainer.max_epochs=null",
    "--samples.max_new_tokens=1",
]  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """What a run took."""

    peak: int
    """Bytes of the process at its peak."""
    seconds: float
    """Median of a step."""


def fit(args: list[str], steps: int, folder: Path) -> Measured:
    """Train in a process of its own."""
    command = [sys.executable, "-m", "lit_lm", "fit", *args, *SHORT, f"--trainer.max_steps={steps}"]
    process = subprocess.Popen(
        [*command, f"--trainer.default_root_dir={folder}", "--name=run"], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    run = Run(max((folder / "run").glob("version_*"), key=os.path.getmtime))
    tokens = run.config["data"]["batch_size"] * run.config["model"]["net"]["context_length"]
    _, speeds = run.curve("train/tokens_per_second")
    timed = speeds[SKIPPED:] if len(speeds) > SKIPPED else speeds
    return Measured(usage.ru_maxrss * 1024, tokens / statistics.median(timed.tolist()))


def compare(name: str, args: list[str], folder: Path) -> str:
    """Row of the table."""
    planned = planned_run(Options(args), MEASURED)
    steps = max(LEAST_STEPS, int(SECONDS / planned.step_seconds))
    subprocess.run([sys.executable, "-m", "lit_lm", "prepare", *args], stdout=subprocess.DEVNULL, check=True)
    measured = fit(args, steps, folder)
    memory = step_memory(planned.setup).total
    cells = [
        name,
        f"{planned.setup.parameters / 1e6:.1f} M",
        *(f"{memory / 2**20:,.0f}", f"{measured.peak / 2**20:,.0f}", f"{memory / measured.peak:.2f}"),
        *(f"{1000 * planned.step_seconds:,.0f}", f"{1000 * measured.seconds:,.0f}"),
        f"{planned.step_seconds / measured.seconds:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def main(argv: list[str]) -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="only the configs whose name contains TEXT")
    only = parser.parse_args(argv).only
    print("| config | parameters | MiB planned | measured | ratio | ms per step planned | measured | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, args) in enumerate(CONFIGS.items()):
            if only in name:
                print(compare(name, args, Path(folder) / str(number)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
