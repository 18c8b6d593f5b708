"""Fault injection: interrupt training in every way that it must survive, and compare with an uninterrupted run.

    python tools/faults.py --all                    # 50 kills, then 10 in each other kind of run: about 30 minutes
    python tools/faults.py --kills 2 --steps 40     # a quick check
    python tools/faults.py --source my.txt

Prints a table of faults and results; exits with 1 if any result is not as promised. Needs Linux.
"""

import argparse
import logging
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_lm.runs import checkpoints_in, versions

SHAPE = "{vocab_size: 512, context_length: 64, d_model: 64, num_layers: 2, num_heads: 2}"
LOSSES = ("train/loss", "val/loss")
EXACT = ("--model.net.dropout=0", "--model.optimizer=lit_lm.optim.AdamW", "--model.optimizer.lr=1e-3")
"""Options of runs that do not depend on the number of processes: each has its own dropout masks, and Muon's rounding to
bfloat16 would amplify differences in the last bit."""
COMPARED = (*LOSSES, "train/learning_rate", "train/gradient_norm", "train/tokens", "val/bits_per_byte")

Curves = dict[str, list[tuple[int, float]]]
"""For each tag in TensorBoard: steps and values."""


class Runs:
    """Runs of one config in one folder, each with a name."""

    def __init__(self, folder: Path, source: str, steps: int) -> None:
        self.folder, self.source, self.steps = folder, source, steps

    def command(self, name: str, *options: str) -> list[str]:
        """What starts or resumes a run."""
        return ["-m", "lit_lm", "fit", f"--name={name}", "--ckpt_path=last", f"--model.net={SHAPE}",
                "--model.net.dropout=0.1",
                f"--data.source={self.source}", f"--data.cache_dir={self.folder}/cache", "--data.batch_size=12",
                "--data.micro_batch_size=3", f"--trainer.max_steps={self.steps}", "--trainer.val_check_interval=10",
                "--trainer.log_every_n_steps=1", "--trainer.accelerator=cpu", "--checkpoint.every_n_steps=7",
                *options]  # fmt: skip

    def start(self, name: str, *options: str) -> subprocess.Popen[str]:
        """Start or resume a run; returns when training starts or the run has ended."""
        command = [sys.executable, *self.command(name, *options)]
        process = subprocess.Popen(
            command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
        )
        assert process.stdout is not None
        self.output = ""
        for line in process.stdout:
            self.output += line
            if " parameters | " in line:
                break
        return process

    def end(self, process: subprocess.Popen[str]) -> int:
        """Wait for a run and return its exit code."""
        assert process.stdout is not None
        self.output += process.stdout.read()
        return process.wait()

    def finish(self, name: str, *options: str) -> None:
        """Start or resume a run and wait for its end."""
        if self.end(self.start(name, *options)) != 0:
            raise SystemExit(f"{name} failed:\n{self.output}")

    def checkpoints(self, name: str) -> list[Path]:
        """Checkpoints of a run, newest first."""
        return checkpoints_in(self.version(name) / "checkpoints")

    def same(self, a: str, b: str) -> bool:
        """Whether weights, optimizer, step and curves of two runs are equal bit by bit."""
        return not different(self.checkpoints(a)[0], self.checkpoints(b)[0]) and self.curves(a) == self.curves(b)

    def curves(self, name: str) -> Curves:
        return curves(self.version(name))

    def version(self, name: str) -> Path:
        """Newest version of a run: one that was killed before its first checkpoint starts another."""
        folder = self.folder / "logs" / name
        return next(iter(versions(folder)), folder / "version_0")


def curves(version: Path) -> Curves:
    """Logged values of a run."""
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # not: repeated steps are dropped
    events = EventAccumulator(str(version), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in COMPARED}


def different(a: Path, b: Path) -> list[str]:
    """Parts of two checkpoints that are not equal bit by bit."""
    one, other = (torch.load(path, weights_only=True) for path in (a, b))
    keys = ("global_step", "state_dict", "optimizer_states", "lr_schedulers")
    return [key for key in keys if not equal(one[key], other[key])]


Fault = Callable[[Runs, int, float], tuple[bool, str]]
"""Injects a fault, given the number of kills and the seconds of an uninterrupted run; whether all is well, and how."""


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)


def kills(
    runs: Runs, number: int, seconds: float, options: Sequence[str] = (), whole: str = "whole"
) -> tuple[bool, str]:
    done, killed = 0, f"{whole}-killed"
    while done < number:
        process = runs.start(killed, *options)
        if process.poll() is not None:
            raise SystemExit(f"the run ended after {done} kills; increase --steps\n{runs.output}")
        before = runs.checkpoints(killed)
        while done % 2 and runs.checkpoints(killed) == before and process.poll() is None:
            time.sleep(0.01)  # every second time, a step is taken, however long compilation takes
        time.sleep(random.uniform(0, seconds / number))
        process.kill()
        runs.end(process)
        done += process.returncode == -signal.SIGKILL
    runs.finish(killed, *options)
    same = runs.same(killed, whole)
    return same, f"killed {done} times; weights, optimizer and curves {'equal' if same else 'DIFFER'} bit by bit"


def kills_of(whole: str, *options: str) -> Fault:
    """SIGKILLs of runs with other options, a fifth as many, compared with an uninterrupted run of their own."""

    def fault(runs: Runs, number: int, seconds: float) -> tuple[bool, str]:
        runs.finish(whole, *options)
        return kills(runs, max(2, number // 5), seconds, options, whole)

    return fault


def signals(runs: Runs, number: int, seconds: float) -> tuple[bool, str]:
    codes, reported = [], []
    for which in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        process = runs.start("signaled")
        time.sleep(seconds / 6)
        process.send_signal(which)
        codes.append(runs.end(process))
        reported.append(f"stopped by {which.name}" in runs.output and "to resume, run the same command" in runs.output)
    runs.finish("signaled")
    same = runs.same("signaled", "whole")
    return (
        codes == [143, 130, 138] and all(reported) and same,
        f"exit codes {codes}, {sum(reported)} of 3 printed how to resume; bits {'equal' if same else 'DIFFER'}",
    )


def full_disk(runs: Runs, number: int, seconds: float) -> tuple[bool, str]:
    process = runs.start("full")
    while not runs.checkpoints("full"):
        time.sleep(0.01)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (500_000, 500_000))  # less than a checkpoint: a quota
    code = runs.end(process)
    reported = (
        "training continues" in runs.output and "second time in a row" in runs.output and "Traceback" not in runs.output
    )
    runs.finish("full")
    same = runs.same("full", "whole")
    return (
        code == 2 and reported and same,
        f"{'continued once, then stopped' if reported else 'not reported'}, exit code {code}; "
        f"bits {'equal' if same else 'DIFFER'} after resuming with free space",
    )


def damage(runs: Runs, number: int, seconds: float) -> tuple[bool, str]:
    reported, same = [], True
    for spoil in (truncate, flip):
        name = f"damaged-{spoil.__name__}"
        process = runs.start(name)
        while len(runs.checkpoints(name)) < 2:
            time.sleep(0.01)
        process.kill()
        runs.end(process)
        newest = runs.checkpoints(name)[0]
        spoil(newest)
        process = runs.start(name)
        process.kill()
        runs.end(process)
        reported.append(f"{newest.name} is damaged" in runs.output and "; skipping it" in runs.output)
        runs.finish(name)
        same = same and runs.same(name, "whole")
    return (
        all(reported) and same,
        f"{sum(reported)} of 2 reported and skipped; bits {'equal' if same else 'DIFFER'}",
    )


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


class Malice:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return exec, ("open('owned', 'w')",)


def malice(runs: Runs, number: int, seconds: float) -> tuple[bool, str]:
    torch.save({"state_dict": Malice()}, runs.folder / "evil.ckpt")
    command = [sys.executable, "-m", "lit_lm", "validate", "--ckpt_path=evil.ckpt"]
    done = subprocess.run(command, cwd=runs.folder, capture_output=True, text=True, encoding="utf-8")
    refused = done.returncode == 2 and "evil.ckpt is refused" in done.stderr
    return refused and not (runs.folder / "owned").exists(), done.stderr.strip().removeprefix("lit-lm: error: ")


def processes(runs: Runs, number: int, seconds: float) -> tuple[bool, str]:
    runs.finish("one", *EXACT)
    for devices in (1, 2):
        process = runs.start("elastic", *EXACT, f"--trainer.devices={devices}")
        time.sleep(seconds / 4)
        process.terminate()
        runs.end(process)
    runs.finish("elastic", *EXACT)
    return close(runs.curves("one"), runs.curves("elastic"))


def close(one: Curves, other: Curves) -> tuple[bool, str]:
    """Whether the losses of two runs differ by at most 1e-5, and by how much."""
    if [step for step, _ in one["train/loss"]] != [step for step, _ in other["train/loss"]]:
        return False, "a step is missing or doubled"
    worst = {tag: max(abs(a - b) for (_, a), (_, b) in zip(one[tag], other[tag], strict=True)) for tag in LOSSES}
    return max(worst.values()) <= 1e-5, "largest differences: " + ", ".join(f"{t} {d:.1e}" for t, d in worst.items())


FAULTS: dict[str, Fault] = {
    "SIGKILL at random moments": kills,
    "SIGTERM, SIGINT, SIGUSR1": signals,
    "full disk": full_disk,
    "damaged checkpoints (cut, flipped byte)": damage,
    "malicious pickle": malice,
    "1, 2, 1 processes": processes,
}
WITH_ALL: dict[str, Fault] = {
    "SIGKILL, compiled in bfloat16": kills_of("compiled", "--model.compile=true", "--trainer.precision=bf16-mixed"),
    "SIGKILL, streaming with 2 workers": kills_of("streamed", "--data.streaming=true", "--data.num_workers=2"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="number of SIGKILLs; default: %(default)s")
    parser.add_argument("--steps", type=int, default=600, help="steps of each run; default: %(default)s")
    parser.add_argument("--source", default="stories", help="data.source of lit-lm fit; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="seed of the times of the SIGKILLs; default: %(default)s")
    parser.add_argument("--all", action="store_true", help="also kill compiled and streaming runs")
    parser.add_argument("--only", help="regular expression for the names of the faults to run")
    args = parser.parse_args()
    random.seed(args.seed)
    source = args.source if args.source == "stories" else str(Path(args.source).absolute())
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder), source, args.steps)
        process = runs.start("whole")
        begin = time.perf_counter()
        if runs.end(process) != 0:
            raise SystemExit(runs.output)
        seconds = time.perf_counter() - begin
        print(f"{args.source}, {args.steps} steps, {seconds:.0f} s uninterrupted\n")
        print("| fault | as promised | seen |\n|---|---|---|")
        results = []
        for name, fault in (FAULTS | (WITH_ALL if args.all else {})).items():
            if re.search(args.only or "", name):
                good, seen = fault(runs, args.kills, seconds)
                results.append(good)
                print(f"| {name} | {'yes' if good else 'NO'} | {seen} |", flush=True)
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
