"""The processes of a run: their number, what they must agree on, and what to report when one of them is lost."""

import logging
import os
import re
import subprocess
import sys

from lightning.pytorch import Trainer

HOW_TO_RESUME = "to resume, run the same command with --ckpt_path last"

LAUNCHERS = {
    "torchrun": ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "GROUP_WORLD_SIZE"),
    "srun": ("SLURM_STEP_ID", "SLURM_NTASKS", "SLURM_NNODES"),
}
"""For each launcher, the environment variables that tell that it was used, its number of processes, and of nodes."""

LOST = re.compile(r"/gloo/|NCCL|Connection (closed|reset) by peer|Socket Timeout|failed to (recv|send)|Broken pipe")
"""In messages of torch.distributed, that another process ended or cannot be reached."""


def check_world_size(trainer: Trainer) -> None:
    """Check that the Trainer expects as many processes as torchrun or srun started: else each trains its own model.

    Raises:
        ValueError: if the numbers differ.
    """
    for launcher, (used, total, nodes) in LAUNCHERS.items():
        if used not in os.environ or (number := int(os.environ.get(total, 1))) == trainer.world_size:
            continue
        num_nodes = int(os.environ.get(nodes, 1))
        remedy = f"--trainer.devices {number // num_nodes}" + f" --trainer.num_nodes {num_nodes}" * (num_nodes > 1)
        raise ValueError(
            f"{launcher} started {number} processes, but the Trainer expects {trainer.world_size}: pass {remedy}"
        )


def check_same_start(trainer: Trainer, start: str) -> None:
    """Check that all processes start from the same checkpoint. All must call this.

    Args:
        trainer: The Trainer, after it has connected the processes.
        start: Description of the start of this process.

    Raises:
        ValueError: in all processes, if one of them starts elsewhere than the first.
    """
    first = trainer.strategy.broadcast(start)
    if not trainer.strategy.reduce_boolean_decision(first == start, all=True):
        here = "" if first == start else f", and process {trainer.global_rank} from {start}"
        raise ValueError(
            f"the processes do not start from the same checkpoint: the first from {first}{here}; use a folder that all "
            "machines share, or pass the path of a checkpoint that each of them has"
        )


def is_lost_process(error: RuntimeError) -> bool:
    """Whether an error says that another process ended or cannot be reached."""
    return LOST.search(str(error)) is not None


def report_lost_processes(remedy: str) -> None:
    """Report when a process that the Trainer started has ended, before Lightning ends the others by SIGKILL.

    Args:
        remedy: What the user can do.
    """
    launcher = logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script")
    launcher.setLevel(logging.INFO)
    launcher.propagate = False
    launcher.handlers = [_Report(remedy)]


class _Report(logging.Handler):
    """Puts the launcher's message in our words."""

    MESSAGE = re.compile(r"\[rank: (\d+)\] Child process with PID \d+ terminated with code (-?\d+)")

    def __init__(self, remedy: str) -> None:
        super().__init__()
        self.remedy = remedy

    def emit(self, record: logging.LogRecord) -> None:
        """Print that a process has ended, and how to resume."""
        if match := self.MESSAGE.search(record.getMessage()):
            print(
                f"lit-lm: error: process {match[1]} ended with code {match[2]}, so all end; {self.remedy}",
                file=sys.stderr,
                flush=True,
            )


def requeue_job() -> str:
    """Put this SLURM job back into the queue; returns what to report."""
    job = os.environ["SLURM_JOB_ID"]
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        return f"job {job} could not be requeued: {error.stderr.strip()}"
    except OSError as error:
        return f"job {job} could not be requeued: {error}"
    return f"job {job} is requeued"
