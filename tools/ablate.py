"""Ablations: train a config and changes to it over several seeds, and compare the validation losses.

    python tools/ablate.py --config configs/quick.yaml --seeds 0 1 2 \\
        --change "lr 2e-2: --model.optimizer.init_args.lr 2e-2" --change "tied: --model.net.tie_embeddings true"
    python tools/ablate.py --config configs/quick.yaml --name width --baseline "d_model 128" \\
        --change "d_model 64: --model.net.d_model 64" --sweep model.optimizer.init_args.lr 1e-3 2e-3 4e-3 8e-3

All other options are passed to `lit-lm fit` in every run. The first row is the unchanged config. With --sweep, every
row is trained with each value of one option. Runs execute one after another, in logs/NAME/CHANGE/seed_SEED. After an
interruption, the same command resumes; finished runs are not repeated.

Prints a table; writes results.json and curves.png (with --sweep: the final loss over the values) to logs/NAME. Exits
with 2 before training if a change is invalid, with 1 if a run failed.
"""

import argparse
import io
import json
import re
import shlex
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any, TextIO

from matplotlib import colormaps
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_lm.__main__ import main as lit_lm
from lit_lm.files import write_text
from lit_lm.runs import LOGS, versions

STOPPED = (130, 138, 143)
"""Exit codes of a run that was stopped by a signal."""
OWN = ("--ckpt_path", "--name", "--seed", "--trainer.default_root_dir", "--trainer.logger")
"""Options of fit that this tool sets itself, or needs at their defaults."""


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    change: str
    value: str | None
    """Value of the swept option."""
    options: list[str]
    name: str
    """Folder of its runs, in logs."""
    results: dict[int, dict[str, Any]] = field(default_factory=dict)
    """For each seed: curve (steps and validation losses), bits_per_byte, seconds."""

    def __str__(self) -> str:
        return self.change if self.value is None else f"{self.change}, {self.value}"

    def losses(self) -> dict[int, float]:
        """Final validation loss of each seed, in nats per token."""
        return {seed: result["curve"][-1][1] for seed, result in self.results.items()}


def variants(args: argparse.Namespace, common: list[str]) -> list[Variant]:
    """The rows to train, starting with the unchanged config."""
    changes = {args.baseline: ""}
    for text in args.change:
        name, colon, options = text.partition(":")
        if not colon or not options.strip() or name in changes:
            raise ValueError(f"--change is {text!r}; it must be 'NAME: OPTIONS', with another NAME for each")
        changes[name] = options
    option, *values = args.sweep or ["", None]
    found = []
    for change, options in changes.items():
        for value in values:
            words = [*common, *shlex.split(options), *([f"--{option}", value] if value else [])]
            if own := [word for word in words if word.partition("=")[0] in OWN]:
                raise ValueError(f"{own[0]} cannot be changed: every run has its own (see --seeds and --name)")
            folder = re.sub(r"[^\w.-]+", "_", f"{change}_{value}" if value else change)
            found.append(Variant(change, value, words, f"{args.name}/{folder}"))
    if len({variant.name for variant in found}) < len(found):
        raise ValueError("two changes have the same folder: " + ", ".join(variant.name for variant in found))
    return found


def check(variant: Variant) -> None:
    """Check the options with lit-lm, prepare the data, and save the complete config next to the runs."""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            try:
                lit_lm(["fit", *variant.options, "--print_config"])
            except SystemExit as stop:
                if stop.code:
                    raise
            config = printed.getvalue()
            lit_lm(["prepare", *variant.options])
    except SystemExit:
        print(f"the change is {variant}: {shlex.join(variant.options)}", file=sys.stderr)
        raise
    path = LOGS / variant.name / "config.yaml"
    if path.exists() and path.read_text(encoding="utf-8") != config:
        raise ValueError(f"the runs in {path.parent} have a different config; choose another --name or delete them")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(config, encoding="utf-8")


def train(variant: Variant, seed: int) -> bool:
    """Train or resume a run, unless it is finished. Returns whether it succeeded."""
    name = f"{variant.name}/seed_{seed}"
    folder = LOGS / name
    finished = folder / "result.json"
    if not finished.exists():
        folder.mkdir(exist_ok=True)
        with open(folder / "output.txt", "a+", encoding="utf-8") as output:
            command = [sys.executable, "-m", "lit_lm", "fit", "--config", str(LOGS / variant.name / "config.yaml")]
            command += ["--seed", str(seed), "--name", name, "--ckpt_path", "last"]
            if not run(command, output):
                output.seek(0)
                print("".join(output.readlines()[-5:]), end="", file=sys.stderr)
                return False
        write_text(finished, json.dumps(result(versions(folder)[0])))
    variant.results[seed] = json.loads(finished.read_text(encoding="utf-8"))
    return True


def run(command: list[str], output: TextIO) -> bool:
    """Run a command and return whether it succeeded. A signal to this process stops the command first."""
    with subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            code = process.wait()
        except KeyboardInterrupt:  # the terminal signals both processes
            code = process.wait() or 130
        finally:
            signal.signal(signal.SIGTERM, before)
    if code in STOPPED or code < 0:
        print("stopped; to resume, run the same command", file=sys.stderr)
        raise SystemExit(code if code > 0 else 128 - code)
    return code == 0


def result(folder: Path) -> dict[str, Any]:
    """Metrics of a run from its TensorBoard events. The seconds are those of its steps, without interruptions."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    seconds, before = 0.0, 0.0
    for tokens, speed in zip(events.Scalars("train/tokens"), events.Scalars("train/tokens_per_second"), strict=True):
        seconds, before = seconds + (tokens.value - before) / speed.value, tokens.value
    return {
        "curve": [(event.step, event.value) for event in events.Scalars("val/loss")],
        "bits_per_byte": events.Scalars("val/bits_per_byte")[-1].value,
        "seconds": seconds,
    }


def table(rows: list[Variant]) -> str:
    """Markdown table. Differences are between runs with the same seed (and value), which read the same windows."""
    lines = ["| | val/loss | difference | bits per byte | seconds |", "|---|---|---|---|---|"]
    for row in rows:
        if not row.results:
            lines.append(f"| {row} | failed | | | |")
            continue
        losses = row.losses()
        baseline = next(other for other in rows if other.value == row.value)
        base = {} if baseline is row else baseline.losses()
        differences = [losses[seed] - base[seed] for seed in losses if seed in base]
        spread = f" ({min(losses.values()):.4f} to {max(losses.values()):.4f})" if len(losses) > 1 else ""
        bits, seconds = (mean(result[what] for result in row.results.values()) for what in ("bits_per_byte", "seconds"))
        difference = with_deviation(differences, "+.4f") if differences else ""
        loss = with_deviation(list(losses.values()), ".4f") + spread
        lines.append(f"| {row} | {loss} | {difference} | {bits:.4f} | {seconds:.0f} |")
    return "\n".join(lines)


def with_deviation(numbers: list[float], form: str) -> str:
    """The mean, and the standard deviation if there are several."""
    return f"{mean(numbers):{form}}" + (f" ± {stdev(numbers):.4f}" if len(numbers) > 1 else "")


def draw(rows: list[Variant], sweep: list[str] | None, path: Path) -> None:
    """Plot validation loss over steps, or final loss over the swept values: the mean and range of all seeds."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    lines: dict[str, list[tuple[float, list[float]]]] = {}  # each point: x, and the loss of each seed
    for row in rows:
        if sweep and row.value and row.results:
            lines.setdefault(row.change, []).append((float(row.value), list(row.losses().values())))
        elif row.results:
            points = zip(*(result["curve"] for result in row.results.values()), strict=True)
            lines[row.change] = [(seeds[0][0], [loss for _, loss in seeds]) for seeds in points]
    for number, (name, line) in enumerate(lines.items()):
        color = colormaps["tab10" if len(lines) <= 10 else "tab20"](number)
        x, means = [x for x, _ in line], [mean(losses) for _, losses in line]
        axes.plot(x, means, label=name, color=color, marker="o" if sweep else "")
        axes.fill_between(x, [min(s) for _, s in line], [max(s) for _, s in line], color=color, alpha=0.2, linewidth=0)
        if sweep:
            best = means.index(min(means))
            axes.plot(x[best], means[best], color=color, marker="*", markersize=18)
    if sweep:
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted({x for line in lines.values() for x, _ in line}), labels=sweep[1:])
    axes.set_xlabel(sweep[0] if sweep else "steps")
    axes.set_ylabel("final validation loss" if sweep else "validation loss")
    axes.grid(alpha=0.3)
    if lines:
        axes.legend()
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run the ablation."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--change", action="append", default=[], help="'NAME: OPTIONS', options of fit; repeatable")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--sweep", nargs="+", metavar=("OPTION", "VALUE"), help="an option of fit and numbers to try")
    parser.add_argument("--name", default="ablation", help="everything is written to logs/NAME")
    parser.add_argument("--baseline", default="baseline", help="name of the unchanged config")
    args, common = parser.parse_known_args(argv)
    try:
        rows = variants(args, common)
        for variant in rows:
            check(variant)
    except ValueError as error:
        parser.exit(2, f"ablate: error: {error}\n")
    good = True
    for seed in args.seeds:  # train all rows with one seed before the next
        for variant in rows:
            ended = train(variant, seed)
            loss = f"val/loss {variant.losses()[seed]:.4f}" if ended else "failed"
            print(f"{variant}, seed {seed}: {loss}", flush=True)
            good = good and ended
    folder = LOGS / args.name
    results = [{"change": v.change, "value": v.value, "options": v.options, "seeds": v.results} for v in rows]
    (folder / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    draw(rows, args.sweep, folder / "curves.png")
    print(f"\n{table(rows)}\n\n{folder}/curves.png, {folder}/results.json")
    if not good:
        sys.exit(1)


if __name__ == "__main__":
    main()
