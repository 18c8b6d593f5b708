"""Two nodes on one machine: network namespaces with a virtual cable between them, and what a run on them survives.

    sudo python tools/nodes.py                   # all scenarios: about 15 minutes on two cores
    sudo python tools/nodes.py --only cable

Prints a table of scenarios and results; exits with 1 if any result is not as promised. Needs Linux, root, and `ip` of
iproute2. Namespaces and processes are removed at the end; those of a call that was killed, by the next call.
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
LIMIT = 600
"""Seconds to wait for something, on a machine that others use too."""
MOMENT = r"step 20/"
"""In the output of the first node, when most scenarios interrupt the run."""
LOST = r"lit-lm: error: another process ended or cannot be reached .* to resume, run the same command"


class Node:
    """A network namespace, in which the processes of one machine run."""

    def __init__(self, number: int) -> None:
        self.number, self.name, self.address = number, f"lit-lm-{number}", f"10.77.0.{number + 1}"
        self.process: subprocess.Popen[bytes] | None = None
        self.output = Path()

    def start(self, runs: Runs, run: str, *options: str, torchrun: bool = True, **env: str) -> None:
        """Start or resume a run on this node, in its folder; both nodes must be started."""
        launcher = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d",
                    "--rdzv-endpoint=10.77.0.1:29500", f"--local-addr={self.address}",
                    f"--rdzv-conf=is_host={self.number == 0}", "--max-restarts=3"]  # fmt: skip
        if not torchrun:
            launcher = []
            env |= {"MASTER_ADDR": "10.77.0.1", "MASTER_PORT": "29500", "NODE_RANK": str(self.number)}
        command = runs.command(run, *OPTIONS, "--trainer.num_nodes=2", *options)
        self.output = runs.folder / f"{run}-{self.number}.txt"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, sys.executable, *launcher, *command],
                cwd=runs.folder,
                env={"GLOO_SOCKET_IFNAME": "veth"} | os.environ | env,
                stdout=output,
                stderr=output,
            )

    def wait_for(self, pattern: str) -> float:
        """Wait until a pattern is in the output, and return after how many seconds it was."""
        begin = time.perf_counter()
        while time.perf_counter() - begin < LIMIT:
            if re.search(pattern, self.output.read_text(errors="replace")):
                return time.perf_counter() - begin
            time.sleep(0.1)
        raise TimeoutError(f"no {pattern!r} in {LIMIT} s in the output of node {self.number}")

    def end(self) -> int:
        """Wait for the end of the command and return its exit code."""
        assert self.process is not None
        return self.process.wait(LIMIT)

    def pids(self) -> list[int]:
        """All processes on this node."""
        done = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True)
        return [int(pid) for pid in done.stdout.split()]

    def worker(self) -> int:
        """The process that trains; torchrun is its parent."""
        return next(pid for pid in self.pids() if b"torch.dist" not in Path(f"/proc/{pid}/cmdline").read_bytes())

    def signal(self, number: signal.Signals, *pids: int) -> None:
        """Send a signal to processes on this node; none: to all."""
        for pid in pids or self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def cable(self, state: str) -> None:
        """Set the end of the cable at this node up or down."""
        ip(f"-n {self.name} link set veth {state}")

    def remove(self) -> None:
        """End all processes and delete the namespace."""
        while pids := self.pids():
            self.signal(signal.SIGKILL, *pids)
            if self.process is not None:
                self.process.wait()
            time.sleep(0.05)
        subprocess.run(["ip", "netns", "delete", self.name], capture_output=True)


class Nodes:
    """The two nodes, and the runs on them."""

    def __init__(self, folder: Path) -> None:
        self.runs = Runs(folder, "stories", steps=100)
        self.nodes = self.first, self.second = Node(0), Node(1)

    def __enter__(self) -> "Nodes":
        for node in self.nodes:
            node.remove()
            ip(f"netns add {node.name}")
        ip("link add veth netns lit-lm-0 type veth peer name veth netns lit-lm-1")
        for node in self.nodes:
            ip(f"-n {node.name} address add {node.address}/24 dev veth")
            for device in ("lo", "veth"):
                ip(f"-n {node.name} link set {device} up")
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # a second one must not end this
        for node in self.nodes:
            node.remove()

    def start(self, run: str, *options: str, torchrun: bool = True, **env: str) -> None:
        """Start a run on both nodes."""
        for node in self.nodes:
            node.start(self.runs, run, *options, torchrun=torchrun, **env)

    def interrupted(self, run: str, torchrun: bool = True) -> None:
        """Start a run and return when it is to be interrupted."""
        self.start(run, torchrun=torchrun)
        self.first.wait_for(MOMENT)

    def end(self) -> list[int]:
        """Exit codes of both nodes."""
        return [node.end() for node in self.nodes]

    def same(self, run: str) -> tuple[bool, str]:
        """Whether a run ended well, and equals the undisturbed one."""
        if any(codes := self.end()):
            return False, f"exit codes {codes}"
        same = self.runs.same(run, "whole")
        return same, f"weights, optimizer and curves {'equal' if same else 'DIFFER'} bit by bit"


def ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True)


def undisturbed(nodes: Nodes) -> tuple[bool, str]:
    nodes.start("whole")
    if any(codes := nodes.end()):
        return False, f"exit codes {codes}"
    nodes.runs.finish("one", *OPTIONS)
    good, seen = close(nodes.runs.curves("one"), nodes.runs.curves("whole"))
    return good, f"{seen}, from one process"


def process_killed(nodes: Nodes) -> tuple[bool, str]:
    nodes.interrupted("process")
    nodes.second.signal(signal.SIGKILL, nodes.second.worker())
    good, seen = nodes.same("process")
    return good, f"torchrun restarts both nodes; {seen}"


def node_killed(nodes: Nodes) -> tuple[bool, str]:
    nodes.interrupted("node")
    nodes.second.signal(signal.SIGKILL)
    seconds = nodes.first.wait_for(LOST)
    nodes.second.start(nodes.runs, "node")
    good, seen = nodes.same("node")
    return good, f"reported after {seconds:.0f} s; its torchrun started again, the other restarts; {seen}"


def lost_on_both(nodes: Nodes) -> tuple[bool, str]:
    """Cut the cable, and wait until both nodes have reported it in one line."""
    nodes.second.cable("down")
    begin = time.perf_counter()
    for node in nodes.nodes:
        node.wait_for(LOST)
    seconds = time.perf_counter() - begin
    once = all(len(re.findall("lit-lm: error", node.output.read_text(errors="replace"))) == 1 for node in nodes.nodes)
    return once and seconds < 30, f"one line on each node within {seconds:.0f} s"


def cable_cut(nodes: Nodes) -> tuple[bool, str]:
    nodes.interrupted("cable")
    reported, how = lost_on_both(nodes)
    nodes.second.cable("up")
    good, seen = nodes.same("cable")
    return reported and good, f"{how}; when it is mended, torchrun restarts both; {seen}"


def cable_cut_alone(nodes: Nodes) -> tuple[bool, str]:
    nodes.interrupted("alone", torchrun=False)
    reported, how = lost_on_both(nodes)
    codes = nodes.end()
    nodes.second.cable("up")
    nodes.start("alone", torchrun=False)
    good, seen = nodes.same("alone")
    return reported and codes == [2, 2] and good, f"{how}, exit codes {codes}; the same command resumes; {seen}"


def cable_cut_shortly(nodes: Nodes) -> tuple[bool, str]:
    nodes.interrupted("shortly")
    nodes.second.cable("down")
    time.sleep(10)
    nodes.second.cable("up")
    good, seen = nodes.same("shortly")
    return good and "lit-lm: error" not in nodes.first.output.read_text(), f"the run continues; {seen}"


def node_busy(nodes: Nodes) -> tuple[bool, str]:
    nodes.interrupted("busy")
    busy = nodes.second.worker()
    nodes.second.signal(signal.SIGSTOP, busy)
    time.sleep(60)
    nodes.second.signal(signal.SIGCONT, busy)
    good, seen = nodes.same("busy")
    return good and "lit-lm: error" not in nodes.first.output.read_text(), f"the run continues; {seen}"


def unshared(nodes: Nodes) -> tuple[bool, str]:
    folders = [nodes.runs.folder / f"disk-{node.number}" for node in nodes.nodes]
    for when in ("first", "again"):
        for node, folder in zip(nodes.nodes, folders, strict=True):
            options = [f"--trainer.default_root_dir={folder}/logs", f"--data.cache_dir={folder}/cache"]
            node.start(nodes.runs, f"unshared-{when}", "--name=unshared", *options, torchrun=False)
        codes = nodes.end()
        if when == "first":
            stores = [{path.parent.name: path.read_bytes() for path in folder.rglob("meta.json")} for folder in folders]
            good = codes == [0, 0] and stores[0] == stores[1] != {}
    refused = ["do not start from the same checkpoint" in node.output.read_text() for node in nodes.nodes]
    return (
        good and all(refused) and codes == [2, 2],
        f"each node prepares the same {len(stores[0])} token stores; without a shared logs/, both refuse to resume",
    )


def one_process(nodes: Nodes) -> tuple[bool, str]:
    nodes.interrupted("elastic", torchrun=False)
    nodes.first.signal(signal.SIGTERM)
    codes = nodes.end()
    nodes.runs.finish("elastic", *OPTIONS)
    good, seen = close(nodes.runs.curves("whole"), nodes.runs.curves("elastic"))
    return good, f"exit codes {codes}; {seen}"


def loopback(nodes: Nodes) -> tuple[bool, str]:
    nodes.start("loopback", torchrun=False, GLOO_SOCKET_IFNAME="lo")
    codes = nodes.end()
    said = {line for node in nodes.nodes for line in node.output.read_text().splitlines() if "lit-lm: error" in line}
    return codes == [2, 2], f"exit codes {codes}: {said}"


SCENARIOS: dict[str, Callable[[Nodes], tuple[bool, str]]] = {
    "undisturbed": undisturbed,
    "a process is killed": process_killed,
    "a node is killed, and started again": node_killed,
    "the cable is cut": cable_cut,
    "the cable is cut, without torchrun": cable_cut_alone,
    "the cable is cut for 10 s": cable_cut_shortly,
    "a process stands still for 60 s": node_busy,
    "no shared disk": unshared,
    "SIGTERM; one process resumes": one_process,
    "wrong interface": loopback,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="regular expression for the names of the scenarios to run")
    args = parser.parse_args()
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        sys.exit("nodes.py: error: network namespaces need Linux, root, and ip: apt-get install iproute2, and use sudo")
    os.environ |= {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    results = []
    with tempfile.TemporaryDirectory() as folder, Nodes(Path(folder)) as nodes:
        print("| scenario | as promised | seen | seconds |\n|---|---|---|---|")
        for name, scenario in SCENARIOS.items():
            if name != "undisturbed" and not re.search(args.only, name):
                continue
            begin = time.perf_counter()
            try:
                good, seen = scenario(nodes)
            except (TimeoutError, subprocess.TimeoutExpired) as error:
                good, seen = False, str(error)
            print(f"| {name} | {'yes' if good else 'NO'} | {seen} | {time.perf_counter() - begin:.0f} |", flush=True)
            results.append(good)
            for node in nodes.nodes:
                if not good and node.output.is_file():
                    print(node.output.read_text(errors="replace"), file=sys.stderr)
                node.signal(signal.SIGKILL)
                node.cable("up")
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
