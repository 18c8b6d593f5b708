"""Resume matrix: interrupt short runs of many kinds at chosen moments, resume them, and compare with whole runs.

    python tools/resume_matrix.py --cases 100 --seed 0

The result must be what docs/exact.md promises: weights, optimizer state and curves equal bit by bit; losses within a
tolerance if the number of processes changes; an error in words if the seed changes.

Each run is a fork of this process. Prints a line per case and a summary; exits with 1 if a case fails. Needs Linux.
"""

import argparse
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import torch
from faults import LOSSES, curves, different
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lit_lm.__main__ import main as lit_lm
from lit_lm.runs import versions
from lit_lm.training.curves import LossCurves

STEPS = 12
TOLERANCE = {"AdamW": 1e-5, "Muon": 2e-4}  # of losses when the number of processes changes: see docs/exact.md
OPTIMIZERS = {
    "Muon": "lit_lm.optim.Muon",
    "AdamW": "lit_lm.optim.AdamW --model.optimizer.lr=1e-2",
    "SGDDecay": "lit_lm.optim.SGDDecay --model.optimizer.lr=0.1",
    "SGD": "torch.optim.SGD --model.optimizer.lr=0.1 --model.optimizer.momentum=0.9",
    "Adam": "torch.optim.Adam --model.optimizer.lr=1e-2",
    "Adagrad": "torch.optim.Adagrad --model.optimizer.lr=1e-2",
    "RMSprop": "torch.optim.RMSprop --model.optimizer.lr=1e-3",
    "NAdam": "torch.optim.NAdam --model.optimizer.lr=1e-2",
}
SCHEDULES = {
    "WarmupStableDecay": "lit_lm.optim.WarmupStableDecay --model.schedule.warmup_steps=3",
    "WarmupCosine": "lit_lm.optim.WarmupCosine --model.schedule.warmup_steps=3",
    "CosineAnnealingLR": f"torch.optim.lr_scheduler.CosineAnnealingLR --model.schedule.T_max={STEPS}",
    "StepLR": "torch.optim.lr_scheduler.StepLR --model.schedule.step_size=4",
    "ConstantLR": "torch.optim.lr_scheduler.ConstantLR --model.schedule.total_iters=5",
    "LinearLR": "torch.optim.lr_scheduler.LinearLR --model.schedule.total_iters=6",
}


@dataclass(frozen=True)
class Recipe:
    """What decides the bits of a run."""

    optimizer: str
    schedule: str
    streaming: bool
    compiled: bool
    processes: int
    dropout: float
    seed: int = 0

    def options(self) -> list[str]:
        classes = f"--model.optimizer={OPTIMIZERS[self.optimizer]} --model.schedule={SCHEDULES[self.schedule]}"
        rest = f"--model.compile={self.compiled} --trainer.devices={self.processes} --model.net.dropout={self.dropout}"
        return f"{classes} {rest} --data.streaming={self.streaming} --seed={self.seed}".split()


@dataclass(frozen=True)
class Case:
    """A run that is interrupted, and resumed by `after`."""

    before: Recipe
    after: Recipe
    workers: tuple[int, int]
    signal: signal.Signals
    group: bool
    moment: str
    step: int

    def __str__(self) -> str:
        old, new = vars(self.before), vars(self.after)
        kept = "".join(f", {name}" for name in ("streaming", "compiled") if old[name])
        changed = "".join(f", then {name} {new[name]}" for name in old if old[name] != new[name])
        whom = "group" if self.group else "process"
        run = f"{self.before.optimizer}, {self.before.schedule}{kept}, processes {self.before.processes}"
        return f"{run}, workers {self.workers}, {self.signal.name} to the {whom} at {self.moment} {self.step}{changed}"


def sample(number: int, seed: int) -> list[Case]:
    """Cases in which each value occurs about equally often."""
    choices = random.Random(seed)

    def column(*values: Any) -> list[Any]:
        return choices.sample([values[row % len(values)] for row in range(number)], number)

    rows = zip(
        column(*OPTIMIZERS), column(*SCHEDULES), column(False, True), column(*[1] * 9, 2), column(0, 2), column(2, 0),
        column(signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGKILL), column(False, True),
        column(*["setup", "first step", "step", "validation", "writing"] * 3, "compilation"),
        column(*["nothing"] * 6, "optimizer", "schedule", "processes", "seed"), column(*range(10)), strict=True
    )  # fmt: skip
    cases = []
    for optimizer, schedule, streaming, processes, *workers, which, group, moment, change, step in rows:
        if change == "processes" and optimizer not in TOLERANCE:
            optimizer = choices.choice([*TOLERANCE])
        dropout = 0.0 if change == "processes" else 0.1  # each process has its own dropout masks
        recipe = Recipe(optimizer, schedule, streaming, moment == "compilation", processes, dropout)
        others: dict[str, Any] = {
            "optimizer": choices.choice([name for name in OPTIMIZERS if name != optimizer]),
            "schedule": choices.choice([name for name in SCHEDULES if name != schedule]),
            "processes": 3 - processes, "seed": 1
        }  # fmt: skip
        resumed = recipe if change == "nothing" else replace(recipe, **{change: others[change]})
        step = {"validation": 4 + step // 5 * 4, "step": step, "writing": step}.get(moment, 0)
        cases.append(Case(recipe, resumed, (workers[0], workers[1]), which, group, moment, step))
    return cases


class Interrupt(Callback):
    """Sends a signal to its own process or process group at a moment of the run."""

    def __init__(self, moment: str, step: int, number: int, group: bool) -> None:
        self.moment, self.step, self.number, self.group, self.sent = moment, step, number, group, False

    def send(self, moment: str, trainer: Trainer) -> None:
        if moment in self.moment and trainer.global_step >= self.step and not self.sent and trainer.is_global_zero:
            self.sent = True
            os.kill(0 if self.group else os.getpid(), self.number)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.send("setup", trainer)
        flush, start, flushed = os.fsync, subprocess.Popen.__init__, []

        def interrupted_flush(file: Any) -> None:
            flushed.extend([file] * (trainer.global_step >= self.step))
            if len(flushed) > self.step % 4:  # of four of a checkpoint: before and after renaming its digest and itself
                self.send("writing", trainer)
            flush(file)

        def interrupted_start(popen: Any, args: Any, *rest: Any, **options: Any) -> None:
            start(popen, args, *rest, **options)
            if ".main.cpp" in str(args):  # a compiler is running
                self.send("compilation", trainer)

        os.fsync, subprocess.Popen.__init__ = interrupted_flush, interrupted_start  # type: ignore

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.send("first", trainer)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        self.send("step", trainer)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.send("validation", trainer)


def in_child(args: Sequence[str], output: Path, environment: dict[str, str], processes: int) -> NoReturn:
    """Run `lit-lm` in a process that has just been forked."""
    code: Any = 1
    try:
        os.setsid()
        signal.alarm(600)  # ends a run that hangs
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), 1)
        os.dup2(1, 2)
        os.environ.update(environment)
        if processes == 2:  # as torchrun starts them
            rank = "1" if os.fork() == 0 else "0"
            os.environ.update(LOCAL_RANK=rank, NODE_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
        lit_lm(args)
        code = 0
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


class Matrix:
    """Runs in one folder; whole runs are shared by the cases with the same recipe."""

    def __init__(self, folder: Path, source: str) -> None:
        self.folder, self.source = folder, source
        self.whole: dict[tuple[Recipe, int, Recipe], str] = {}

    def run(self, name: str, recipe: Recipe, *options: str, compiled: str = "compiled") -> tuple[int, str]:
        """Exit code and output of a run, with its own folder of compiled code if it shall compile again."""
        args = [
            "fit", f"--name={name}", f"--data.source={self.source}", f"--data.cache_dir={self.folder}/cache",
            "--model.net={vocab_size: 300, context_length: 32, d_model: 16, num_layers: 1, num_heads: 2}",
            "--data.batch_size=4", "--data.micro_batch_size=2", f"--trainer.max_steps={STEPS}",
            "--trainer.val_check_interval=4", "--trainer.log_every_n_steps=1", "--trainer.accelerator=cpu",
            f"--trainer.default_root_dir={self.folder}/logs", *recipe.options(), *options
        ]  # fmt: skip
        environment, output = {"TORCHINDUCTOR_CACHE_DIR": f"{self.folder}/{compiled}"}, self.folder / "output.txt"
        with socket.create_server(("127.0.0.1", 0)) as free:
            environment["MASTER_PORT"] = str(free.getsockname()[1])
        if (pid := os.fork()) == 0:
            in_child(args, output, environment, recipe.processes)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        os.killpg(pid, signal.SIGKILL)  # workers of a killed process, or the other process
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return code, output.read_text(encoding="utf-8", errors="replace")

    def uninterrupted(self, before: Recipe, step: int, after: Recipe) -> str:
        """Name of a run that is trained by `before` for `step` steps, then by `after`."""
        if before == after or step == 0:
            before, step = after, 0
        if (key := (before, step, after)) not in self.whole:
            options = ["--checkpoint.every_n_steps=1", f"--checkpoint.keep_last={STEPS}"]
            if step:
                options.append(f"--ckpt_path={self.checkpoint(self.uninterrupted(before, 0, before), step)}")
            self.whole[key] = f"whole_{len(self.whole)}"
            code, output = self.run(self.whole[key], after, *options)
            if code != 0:
                raise SystemExit(f"an uninterrupted run failed with {code}\n{after}\n{output}")
        return self.whole[key]

    def checkpoint(self, name: str, step: int = STEPS) -> Path:
        return versions(self.folder / "logs" / name)[0] / "checkpoints" / f"step_{step:08d}.ckpt"

    def points(self, name: str, first: int = 0, last: int = STEPS) -> list[tuple[str, int, float]]:
        """Tag, step and value of all that a run logged after step `first` up to `last`."""
        logged = curves(versions(self.folder / "logs" / name)[0])
        return sorted((tag, *point) for tag, points in logged.items() for point in points if first < point[0] <= last)

    def result(self, number: int, case: Case) -> str:
        """Interrupt, resume and compare. Begins with equal, close or refused; anything else is a failure."""
        name = f"case_{number}"
        code, output = self.run(
            name, case.before, f"--data.num_workers={case.workers[0]}", "--checkpoint.every_n_steps=3",
            "--trainer.callbacks=resume_matrix.Interrupt", f"--trainer.callbacks.moment={case.moment}",
            f"--trainer.callbacks.step={case.step}", f"--trainer.callbacks.number={case.signal:d}",
            f"--trainer.callbacks.group={case.group}", compiled=name
        )  # fmt: skip
        expected = -signal.SIGKILL if case.signal == signal.SIGKILL else 128 + case.signal
        there = all(Path(path).exists() for path in re.findall(r"saved to (\S+)", output))
        if code != expected or not there or (case.before.processes == 1 and "Traceback" in output):
            return f"FAILED: the interrupted run ended with {code}\n{output}"
        code, output = self.run(name, case.after, "--ckpt_path=last", f"--data.num_workers={case.workers[1]}")
        step = int((re.findall(r"resuming from .*step_(\d+)\.ckpt", output) or [0])[0])
        if step and case.before.seed != case.after.seed:
            refused = code == 2 and "lit-lm: error: " in output and "Traceback" not in output
            return "refused" if refused else f"FAILED: not refused, exit code {code}\n{output}"
        if code != 0:
            return f"FAILED: the resumed run ended with {code}\n{output}"
        if output.count("starts from scratch") != (step > 0 and case.before.optimizer != case.after.optimizer):
            return f"FAILED: wrong message about the optimizer's state\n{output}"
        return f"{self.compared(name, case, step)}, resumed from step {step}"

    def compared(self, name: str, case: Case, step: int) -> str:
        """Compare a resumed run with an uninterrupted one that changes in the same way after `step` steps."""
        begun = self.uninterrupted(case.before, 0, case.before) if step else ""
        if step and case.before.processes != case.after.processes:
            pairs = zip(self.points(name), self.points(begun), strict=True)
            most = max(abs(a[2] - b[2]) if a[:2] == b[:2] else float("inf") for a, b in pairs if a[0] in LOSSES)
            return f"{'close' if most <= TOLERANCE[case.before.optimizer] else 'DIFFERENT'} (at most {most:.1e})"
        whole = self.uninterrupted(case.before, step, case.after)
        found = different(self.checkpoint(name), self.checkpoint(whole))
        if self.points(name) != sorted((self.points(begun, 0, step) if step else []) + self.points(whole, step)):
            found.append("curves")
        return f"DIFFERENT ({', '.join(found)})" if found else "equal"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100, help="number of cases; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample; default: %(default)s")
    parser.add_argument("--source", default="stories", help="data.source of lit-lm fit; default: %(default)s")
    parser.add_argument("--only", default="", help="regular expression for the lines of the cases to run")
    args = parser.parse_args()
    import_module("lit_lm.cli.fit")
    torch.set_num_threads(1)
    LossCurves.on_train_end = Callback.on_train_end  # type: ignore[method-assign]  # the plot takes long
    results: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        matrix = Matrix(Path(folder), args.source)
        for number, case in enumerate(sample(args.cases, args.seed)):
            if re.search(args.only, f"{number}: {case}"):
                result = matrix.result(number, case)
                word = re.split(r"\W", result)[0]
                results[word if word in ("equal", "close", "refused") else "failures"] += 1
                print(f"{number}: {case}: {result}", flush=True)
    print(", ".join(f"{word} {results[word]}" for word in ("equal", "close", "refused", "failures")))
    sys.exit(1 if results["failures"] else 0)


if __name__ == "__main__":
    main()
