"""Two nodes on one machine: network namespaces joined by a virtual cable, and what a run on them survives.

    sudo python tools/nodes.py                  # all scenarios: about ten minutes on two free cores
    sudo python tools/nodes.py --only cable

Prints a table of scenarios and results; exits with 1 if any result is not as promised. Needs Linux, root, and `ip` of
iproute2. Processes and namespaces are removed at the end, or by the next call if this one is killed.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from faults import EXACT, Runs, close

NET = "{vocab_size: 512, context_length: 64, d_model: 32, num_layers: 1, num_heads: 2}"
OPTIONS = (f"--model.net={NET}", *EXACT, "--console.every_n_steps=10", "--trainer.val_check_interval=20")
ON_TWO_NODES = "--trainer.num_nodes=2"
ENVIRONMENT = {"GLOO_SOCKET_IFNAME": "veth", "MASTER_ADDR": "10.77.0.1", "MASTER_PORT": "29500",
               "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # fmt: skip
PATIENCE = 600
"""Seconds to wait for anything: others may use the machine too."""
ERROR = "lit-lm: error: "
LOST = f"{ERROR}another process ended or cannot be reached .* to resume, run the same command"


class Node:
    """A network namespace, in which the processes of one machine run."""

    def __init__(self, number: int) -> None:
        self.number, self.name, self.address = number, f"lit-lm-{number}", f"10.77.0.{number + 1}"
        self.process: subprocess.Popen[bytes] | None = None
        self.file: Path | None = None

    def start(self, runs: Runs, run: str, *options: str, torchrun: bool = False) -> None:
        """Start or resume a run on this node."""
        launcher = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d",
                    "--rdzv-endpoint=10.77.0.1:29500", f"--local-addr={self.address}",
                    f"--rdzv-conf=is_host={self.number == 0}", "--max-restarts=3"]  # fmt: skip
        command = [*launcher * torchrun, *runs.command(run, *OPTIONS, *options)]
        self.file = runs.folder / f"{run}-{self.number}.txt"
        with self.file.open("w") as output:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, sys.executable, *command],
                cwd=runs.folder,
                env=os.environ | ENVIRONMENT | {"NODE_RANK": str(self.number)},
                stdout=output,
                stderr=output,
            )

    @property
    def output(self) -> str:
        """What the command has printed."""
        return "" if self.file is None else self.file.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, pattern: str) -> None:
        """Wait until a pattern is in the output."""
        begin = time.perf_counter()
        while not re.search(pattern, self.output):
            if time.perf_counter() - begin > PATIENCE:
                raise TimeoutError(f"no {pattern!r} in {PATIENCE} s in the output of node {self.number}")
            time.sleep(0.1)

    def end(self) -> int:
        """Wait for the end of the command and return its exit code."""
        assert self.process is not None
        return self.process.wait(PATIENCE)

    def pids(self) -> list[int]:
        """All processes on this node."""
        done = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True)
        return [int(pid) for pid in done.stdout.split()]

    def trainer(self) -> int:
        """The process that trains; torchrun is its parent."""
        return next(pid for pid in self.pids() if b"torch.dist" not in Path(f"/proc/{pid}/cmdline").read_bytes())

    def kill(self) -> None:
        """End all processes."""
        while pids := self.pids():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self.process is not None:
                self.process.wait()
            time.sleep(0.05)

    def cable(self, state: str) -> None:
        """Set this node's end of the cable up or down."""
        ip(f"-n {self.name} link set veth {state}")


class Nodes:
    """The two nodes, and the runs on them."""

    def __init__(self, folder: Path) -> None:
        self.runs = Runs(folder, "stories", steps=100)
        self.both = self.first, self.second = Node(0), Node(1)

    def __enter__(self) -> "Nodes":
        self.remove()
        for node in self.both:
            ip(f"netns add {node.name}")
        ip(f"link add veth netns {self.first.name} type veth peer name veth netns {self.second.name}")
        for node in self.both:
            ip(f"-n {node.name} address add {node.address}/24 dev veth")
            ip(f"-n {node.name} link set lo up")
            node.cable("up")
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # a second one does not end this
        self.remove()

    def remove(self) -> None:
        """End all processes and delete the namespaces, and with them the cable."""
        for node in self.both:
            node.kill()
            subprocess.run(["ip", "netns", "delete", node.name], capture_output=True)

    def start(self, run: str, torchrun: bool = True) -> None:
        """Start or resume a run on both nodes."""
        for node in self.both:
            node.start(self.runs, run, ON_TWO_NODES, torchrun=torchrun)

    def start_and_wait(self, run: str, torchrun: bool = True) -> None:
        """Start a run and return when it is to be disturbed."""
        self.start(run, torchrun)
        self.first.wait_for("step 20/")

    def ends(self) -> list[int]:
        """Exit codes of both nodes."""
        return [node.end() for node in self.both]

    def same(self, run: str) -> tuple[bool, str]:
        """Whether a run ends well, and equals the undisturbed one."""
        if any(codes := self.ends()):
            return False, f"exit codes {codes}"
        same = self.runs.same(run, "whole")
        return same, f"weights, optimizer and curves {'equal' if same else 'DIFFER'} bit by bit"

    def close_alone(self, run: str) -> tuple[bool, str]:
        """Whether a run that one process starts or resumes, and ends, is close to the undisturbed one."""
        self.first.start(self.runs, run)
        if code := self.first.end():
            return False, f"exit code {code}"
        return close(self.runs.curves(run), self.runs.curves("whole"))


def ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True)


def undisturbed(nodes: Nodes) -> tuple[bool, str]:
    nodes.start("whole")
    if any(codes := nodes.ends()):
        return False, f"exit codes {codes}"
    good, seen = nodes.close_alone("one")
    return good, f"compared with one process: {seen}"


def process_killed(nodes: Nodes) -> tuple[bool, str]:
    nodes.start_and_wait("process")
    os.kill(nodes.second.trainer(), signal.SIGKILL)
    good, seen = nodes.same("process")
    return good, f"torchrun restarts both nodes; {seen}"


def node_killed(nodes: Nodes) -> tuple[bool, str]:
    nodes.start_and_wait("node")
    nodes.second.kill()
    nodes.first.wait_for(LOST)
    nodes.second.start(nodes.runs, "node", ON_TWO_NODES, torchrun=True)
    good, seen = nodes.same("node")
    return good, f"torchrun is started again on it, and restarts the other; {seen}"


def cable_cut(nodes: Nodes, torchrun: bool = True) -> tuple[bool, str]:
    run = f"cut-{torchrun}"
    nodes.start_and_wait(run, torchrun)
    nodes.second.cable("down")
    begin = time.perf_counter()
    for node in nodes.both:
        node.wait_for(LOST)
    seconds, lines = time.perf_counter() - begin, [node.output.count(ERROR) for node in nodes.both]
    codes = [] if torchrun else nodes.ends()
    nodes.second.cable("up")
    if not torchrun:
        nodes.start(run, torchrun)
    good, seen = nodes.same(run)
    return (
        good and seconds < 30 and lines == [1, 1] and codes in ([], [2, 2]),
        f"{lines} lines of error after {seconds:.0f} s; then the cable is mended, and "
        f"{'torchrun restarts both nodes' if torchrun else f'the same command resumes (exit codes {codes})'}; {seen}",
    )


def cable_cut_alone(nodes: Nodes) -> tuple[bool, str]:
    return cable_cut(nodes, torchrun=False)


def cable_cut_shortly(nodes: Nodes) -> tuple[bool, str]:
    nodes.start_and_wait("shortly")
    nodes.second.cable("down")
    time.sleep(10)
    nodes.second.cable("up")
    return continued(nodes, "shortly")


def process_stopped(nodes: Nodes) -> tuple[bool, str]:
    nodes.start_and_wait("stopped")
    stopped = nodes.second.trainer()
    os.kill(stopped, signal.SIGSTOP)
    time.sleep(60)
    os.kill(stopped, signal.SIGCONT)
    return continued(nodes, "stopped")


def continued(nodes: Nodes, run: str) -> tuple[bool, str]:
    good, seen = nodes.same(run)
    errors = [node.output.count(ERROR) for node in nodes.both]
    return good and errors == [0, 0], f"{errors} lines of error; {seen}"


def unshared(nodes: Nodes) -> tuple[bool, str]:
    folders = [nodes.runs.folder / f"disk-{node.number}" for node in nodes.both]
    codes = []
    for run in ("unshared", "again"):
        for node, disk in zip(nodes.both, folders, strict=True):
            own = f"--trainer.default_root_dir={disk}/logs", f"--data.cache_dir={disk}/cache", "--name=unshared"
            node.start(nodes.runs, run, ON_TWO_NODES, *own)
        codes += nodes.ends()
    stores = [{file.parent.name: file.read_bytes() for file in disk.rglob("meta.json")} for disk in folders]
    refused = sum("do not start from the same checkpoint" in node.output for node in nodes.both)
    return (
        stores[0] == stores[1] != {} and refused == 2 and codes == [0, 0, 2, 2],
        f"each prepares the same {len(stores[0])} token stores; {refused} refuse to resume, as they do not share logs/",
    )


def one_process(nodes: Nodes) -> tuple[bool, str]:
    nodes.start_and_wait("elastic", torchrun=False)
    for node in nodes.both:
        os.kill(node.trainer(), signal.SIGTERM)
    codes = nodes.ends()
    good, seen = nodes.close_alone("elastic")
    return good and codes == [143, 0], f"exit codes {codes}; {seen}"  # the first process reports the signal


SCENARIOS: dict[str, Callable[[Nodes], tuple[bool, str]]] = {
    "undisturbed": undisturbed,
    "a process is killed": process_killed,
    "a node is killed and comes back": node_killed,
    "the cable is cut": cable_cut,
    "the cable is cut, without torchrun": cable_cut_alone,
    "the cable is cut for 10 s": cable_cut_shortly,
    "a process is stopped for 60 s": process_stopped,
    "no shared disk": unshared,
    "SIGTERM, then one process resumes": one_process,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="regular expression for the names of the scenarios to run")
    args = parser.parse_args()
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        sys.exit("nodes.py: error: network namespaces need Linux, root, and ip: apt-get install iproute2, and use sudo")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    results = []
    with tempfile.TemporaryDirectory() as folder, Nodes(Path(folder)) as nodes:
        print("| scenario | as promised | seen | seconds |\n|---|---|---|---|")
        for name, scenario in SCENARIOS.items():
            if scenario is undisturbed or re.search(args.only, name):
                results.append(report(name, scenario, nodes))
    sys.exit(0 if all(results) else 1)


def report(name: str, scenario: Callable[[Nodes], tuple[bool, str]], nodes: Nodes) -> bool:
    """Print the result of a scenario, and the output of the nodes if it failed."""
    begin = time.perf_counter()
    try:
        good, seen = scenario(nodes)
    except (TimeoutError, subprocess.TimeoutExpired) as error:
        good, seen = False, str(error)
    print(f"| {name} | {'yes' if good else 'NO'} | {seen} | {time.perf_counter() - begin:.0f} |", flush=True)
    for node in nodes.both:
        if not good:
            print(node.output, file=sys.stderr)
        node.kill()
        node.cable("up")
    return good


if __name__ == "__main__":
    main()
