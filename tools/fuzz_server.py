"""Fork server of fuzz.py: runs each case in a process of its own, forked from this one, and judges what happened.

Everything is imported already, so that a case takes a fraction of a second. The server must not run torch operations,
because their threads do not survive a fork.
"""

import faulthandler
import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from fuzz_cases import Case, Family

KINDS = {
    "code ran": "a file made the command run code that it names",
    "wrote outside": "a file was written outside of the working, home and temporary folders",
    "signal": "the process crashed",
    "memory": "more memory than the limit was in use",
    "hang": "the command ran longer than the limit",
    "processes": "more processes than the limit were started",
    "traceback": "a traceback was printed",
    "accepted": "an input that is certainly wrong was accepted",
    "refused": "an input that is certainly right was refused",
    "silent": "the command failed without an error message, or with an exit code other than 1 and 2",
    "not made": "making the case failed: an error in fuzz_cases.py",
}
"""What is counted, worst first."""

MARKER = "RAN"
"""File beside the working folder that the code in a malicious file would create."""
DUMP_SIGNAL = signal.SIGUSR2
FRAME = re.compile(r'File "([^"]+)", line (\d+),? in (\S+)')


@dataclass(frozen=True)
class Limits:
    """Limits of a case."""

    seconds: float = 30
    bytes: int = 4 * 10**9
    processes: int = 100


@dataclass
class Running:
    """A case that is running."""

    name: str
    folder: Path
    pid: int
    begun: float
    stopped: str = ""
    """Kind of the limit that it exceeded."""


@dataclass(frozen=True)
class Result:
    """What happened in a case."""

    name: str
    case: Case
    kinds: list[str]
    cause: str
    """Where and why, the same for all cases with one cause."""
    code: int
    seconds: float
    bytes: int

    def __str__(self) -> str:
        return f"{self.name}: lit-lm {shown(self.case.args)}  # {self.case.note}"


class Fuzzer:
    """Runs cases, each in a process of its own."""

    def __init__(
        self,
        root: Path,
        command: Callable[[list[str]], None],
        families: Mapping[str, Family],
        *,
        seed: int = 0,
        limits: Limits | None = None,
    ) -> None:
        """
        Args:
            root: Folder for the material of the cases, and for a folder for each of them.
            command: Runs a command line.
            families: Makes the cases.
            seed: Seed of the cases.
            limits: Limits of each case.
        """
        self.root, self.command, self.families, self.seed = root, command, families, seed
        self.limits = limits or Limits()
        self.material = root / "material" / "work"

    def make_material(self, make: Callable[[Path], None]) -> None:
        """Make the files that cases are derived from, with the right commands."""
        running = self.start("material", lambda: make(Path.cwd()))
        os.waitpid(running.pid, 0)
        if not (self.material / "done").exists():
            raise SystemExit((running.folder / "stderr").read_text(errors="replace"))
        native = running.folder / "home" / ".cache" / "lit-lm" / "native"
        if native.exists():
            native.rename(self.root / "native")

    def run(self, names: Iterable[str], jobs: int = 1, *, keep: bool = False) -> Iterator[Result]:
        """Run the named cases, several at a time; yields each result when the case ends."""
        waiting, running = list(names)[::-1], list[Running]()
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(self.start(waiting[-1], partial(self._run_case, waiting.pop())))
            for case in list(running):
                if (result := self._poll(case)) is not None:
                    running.remove(case)
                    if not keep:
                        shutil.rmtree(case.folder, ignore_errors=True)
                    yield result
            time.sleep(0.005)

    def start(self, name: str, job: Callable[[], None]) -> Running:
        """Start a job in a process whose folders and output are in a folder of its own."""
        folder = self.root / name
        for part in ("work", "temporary", "home/.cache/lit-lm"):
            (folder / part).mkdir(parents=True)
        if (self.root / "native").exists():  # compiled once
            (folder / "home/.cache/lit-lm/native").symlink_to(self.root / "native")
        pid = os.fork()
        if not pid:
            _child(folder, job, self.limits)
        return Running(name, folder, pid, time.monotonic())

    def _run_case(self, name: str) -> None:
        """Make a case and run its command, in the process of the case."""
        family, _, number = name.rpartition("-")
        try:
            case = self.families[family](random.Random(f"{self.seed} {name}"), int(number), self.material)
        except Exception:
            traceback.print_exc()
            return
        Path("../stdin").write_bytes(case.stdin)
        os.dup2(os.open("../stdin", os.O_RDONLY), 0)
        Path("../case.json").write_text(json.dumps(asdict(case) | {"stdin": ""}))
        sys.argv = [str(Path(sys.executable).with_name("lit-lm")), *case.args]  # started again for several devices
        self.command(case.args)

    def _poll(self, case: Running) -> Result | None:
        """The result of a case if it has ended; stops it if it exceeds a limit."""
        pid, status, usage = os.wait4(case.pid, os.WNOHANG)
        if pid:
            with suppress(ProcessLookupError):
                os.killpg(case.pid, signal.SIGKILL)  # its own processes
            peak = usage.ru_maxrss * 1024
            return self._judge(case, os.waitstatus_to_exitcode(status), time.monotonic() - case.begun, peak)
        if not case.stopped:
            case.stopped = self._exceeded(case)
            if case.stopped:
                os.kill(case.pid, DUMP_SIGNAL)
                time.sleep(0.1)
                os.killpg(case.pid, signal.SIGKILL)
        return None

    def _exceeded(self, case: Running) -> str:
        """The kind of the limit that a running case exceeds, if any."""
        processes = [case.pid]
        with suppress(OSError):
            processes += map(int, Path(f"/proc/{case.pid}/task/{case.pid}/children").read_text().split())
        if len(processes) > self.limits.processes:
            return "processes"
        for pid in processes:
            with suppress(OSError):
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                if pages * resource.getpagesize() > self.limits.bytes:
                    return "memory"
        return "hang" if time.monotonic() - case.begun > self.limits.seconds else ""

    def _judge(self, running: Running, code: int, seconds: float, peak: int) -> Result:
        description, kinds = running.folder / "case.json", list[str]()
        printed = (running.folder / "stderr").read_text(encoding="utf-8", errors="replace")
        if not description.exists():
            return Result(running.name, Case([]), ["not made"], printed[-500:], code, seconds, peak)
        case = Case(**json.loads(description.read_text()))
        beside = {path.name for path in running.folder.iterdir()}
        outside = beside - {"work", "home", "temporary", "stdin", "stdout", "stderr", "case.json", MARKER}
        kinds += ["code ran"] * (MARKER in beside)
        kinds += ["wrote outside"] * (case.confined and bool(outside))
        kinds += ["signal"] * (code < 0 and not running.stopped) + [running.stopped] * bool(running.stopped)
        kinds += ["memory"] * (peak > self.limits.bytes and running.stopped != "memory")
        kinds += ["traceback"] * ("Traceback (most recent call last)" in printed)
        kinds += ["accepted"] * (code == 0 and case.expected == "refuse")
        if not kinds:
            kinds += ["refused"] * (code != 0 and case.expected == "accept")
            kinds += ["silent"] * (code not in (0, 1, 2) or (code != 0 and "error" not in printed.lower()))
        return Result(running.name, case, kinds, _cause(kinds, case, printed), code, seconds, peak)


def _child(folder: Path, job: Callable[[], None], limits: Limits) -> None:
    """Run a job in the present process, which was forked for it, and end the process."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder / "work")
        os.environ.update(HOME=str(folder / "home"), TMPDIR=str(folder / "temporary"))
        tempfile.tempdir = None
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
        sys.stdin, sys.stdout = os.fdopen(0, encoding="utf-8"), os.fdopen(1, "w", encoding="utf-8")
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace")
        faulthandler.enable(sys.stderr)
        faulthandler.register(DUMP_SIGNAL, sys.stderr)
        # no process may reserve many times the memory, even for a moment
        resource.setrlimit(resource.RLIMIT_DATA, (4 * limits.bytes, resource.RLIM_INFINITY))
        job()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _cause(kinds: Sequence[str], case: Case, printed: str) -> str:
    """Where and why a case went wrong; without the values of the case, so that cases can be grouped."""
    if not kinds:
        return ""
    if "Traceback (most recent call last)" in printed:
        last = printed.rpartition("Traceback (most recent call last)")[2]
        frames = FRAME.findall(last)[::-1]
        error = next((line for line in last.splitlines()[1:] if line and not line.startswith(" ")), "")
        why = error.partition(":")[0]
    else:
        frames = FRAME.findall(printed.partition("(most recent call first)")[2])
        why = case.note if kinds[0] in ("accepted", "code ran") else ""
        if not frames and not why:
            why = re.sub(r"'[^']*'|\d+|/\S+", "_", printed.strip())[-150:]
    own = next((frame for frame in frames if "/lit_lm/" in frame[0]), None)
    places = [f"{Path(file).parent.name}/{Path(file).name}:{line} ({name})"
              for file, line, name in dict.fromkeys(filter(None, (own, frames[0] if frames else None)))]  # fmt: skip
    return " <- ".join(filter(None, (why, *places)))


def shown(args: Sequence[str], limit: int = 300) -> str:
    """A command line for a shell, in printable characters, cut to a length."""
    text = shlex.join(arg if len(arg) <= limit else f"{arg[:60]}...({len(arg):,} characters)" for arg in args)
    text = re.sub(r"/\S*/lit-lm-fuzz-\w+/material/work", "MATERIAL", text)
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)[: 4 * limit]
