"""The processes of a run: their number, what they share, and what to report when one of them is lost."""

import logging
import os
import random
import re
import socket
import subprocess
import sys
from contextlib import suppress
from ipaddress import ip_address

import torch
import torch.distributed
from lightning.pytorch import Trainer
from torch import Tensor

HOW_TO_RESUME = "to resume, run the same command with --ckpt_path last"

LAUNCHERS = {
    "torchrun": ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "GROUP_WORLD_SIZE"),
    "srun": ("SLURM_STEP_ID", "SLURM_NTASKS", "SLURM_NNODES"),
}
"""For each launcher, the environment variables that tell that it was used, its number of processes, and of nodes."""

INTERACTIVE = ("bash", "interactive")
"""Names of SLURM jobs that are shells; in them, the Trainer starts the processes itself."""

LOST = re.compile(r"/gloo/|NCCL|Connection (closed|reset) by peer|Socket Timeout|failed to (recv|send)|Broken pipe")
"""In messages of torch.distributed, that another process ended or cannot be reached."""

PORTS = range(20_000, 32_000)
"""Below those that Linux, macOS and Windows give to connections."""

SILENCE = 20
"""Seconds after which a machine that does not answer is given up: a cable may be pulled for less."""


def check_world_size(trainer: Trainer) -> None:
    """Check that the Trainer expects as many processes as torchrun or srun started: else each trains its own model.

    Raises:
        ValueError: if the numbers differ.
    """
    for launcher, (used, total, nodes) in LAUNCHERS.items():
        if used not in os.environ or (number := int(os.environ.get(total, 1))) == trainer.world_size:
            continue
        if launcher == "srun" and os.environ.get("SLURM_JOB_NAME") in INTERACTIVE:
            continue
        num_nodes = int(os.environ.get(nodes, 1))
        remedy = f"--trainer.devices {number // num_nodes}" + f" --trainer.num_nodes {num_nodes}" * (num_nodes > 1)
        raise ValueError(
            f"{launcher} started {number} processes, but the Trainer expects {trainer.world_size}: pass {remedy}"
        )


def check_address(trainer: Trainer) -> None:
    """Check that other machines can reach this one by the address of its own name, which gloo takes by default.

    Raises:
        ValueError: if it is an address that only this machine can reach, as Debian and Ubuntu write into /etc/hosts.
    """
    if trainer.num_nodes == 1 or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    try:
        address = str(socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:  # a name without an address
        address = "127.0.0.1"
    if ip_address(address).is_loopback:
        interfaces = ", ".join(name for _, name in socket.if_nameindex())
        raise ValueError(
            f"this machine's own name, {socket.gethostname()}, means {address}, where other machines cannot reach it: "
            f"set the environment variable GLOO_SOCKET_IFNAME to the interface of their network (one of {interfaces})"
        )


def choose_port(trainer: Trainer) -> None:
    """Choose the port by which the processes of one machine find each other, unless a launcher or the user has.

    The Trainer would take one that the system may give to any other connection before it is used.
    """
    chosen = "MASTER_PORT" in os.environ or any(used in os.environ for used, *_ in LAUNCHERS.values())
    if chosen or trainer.num_nodes > 1 or trainer.world_size == 1:
        return
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with suppress(OSError), socket.create_server(("", port)):
            os.environ["MASTER_PORT"] = str(port)
            return


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


class HostCopy:
    """A copy of a tensor on the host, which waits for the device only when it is read."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor.to("cpu", non_blocking=True)
        self._copied = torch.cuda.Event() if tensor.is_cuda else None  # type: ignore[no-untyped-call]
        if self._copied is not None:
            self._copied.record()

    def tolist(self) -> list[float]:
        """The values."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._tensor.tolist()


def share_step(loss: Tensor, *requests: bool) -> tuple[Tensor, HostCopy | None]:
    """Share the results of a step in one all-reduce; all processes must call this.

    Unless the model is sharded, a step communicates only this and the gradients. (The all-reduces of Lightning's
    strategies also wait at a barrier.)

    Args:
        loss: Loss of the step in this process.
        requests: What this process requests of all.

    Returns:
        The mean loss, and for each request, the share of the processes that made it; None with one process.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return loss, None
    shared = torch.stack([loss, *(loss.new_full((), float(request)) for request in requests)])
    torch.distributed.all_reduce(shared)
    shared /= torch.distributed.get_world_size()
    return shared[0], HostCopy(shared[1:])


def watch_connections() -> None:
    """Let a connection fail when the other machine has not answered for SILENCE seconds. Does nothing except on Linux.

    A machine answers also while its processes are busy, so that a long checkpoint or compilation ends no run, as a
    shorter timeout of torch's would. Call this when the processes are connected.
    """
    if sys.platform != "linux":
        return
    for file in os.listdir("/proc/self/fd"):
        # torch does not tell its connections; files that are none refuse the options
        with suppress(OSError), socket.fromfd(int(file), socket.AF_INET, socket.SOCK_STREAM) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE * 1000)  # while sending
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENCE // 4)  # while waiting
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, SILENCE // 4)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def lost_process(error: RuntimeError) -> str | None:
    """What an error of torch.distributed says about a process that ended or cannot be reached; None: another error."""
    if LOST.search(str(error)) is None:
        return None
    return re.sub(r"\[/\S+\] ", "", str(error).splitlines()[0].split(". ")[0])  # without files of gloo


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
