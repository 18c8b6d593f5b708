"""tools/fuzz.py: it counts what goes wrong, and a small part of its cases goes right."""

import re
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).parents[1] / "tools"

WRONG = """
import os, signal, sys, time
from pathlib import Path
from fuzz import report
from fuzz_cases import Case, Family
from fuzz_server import Fuzzer, Limits

def command(args):
    what = args[0]
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif what == "traceback":
        {}["x"]
    elif what == "hang":
        while True:
            time.sleep(1)
    elif what == "memory":
        held = bytearray(400 * 2**20)
        time.sleep(60)
    elif what == "processes":
        for _ in range(9):
            if os.fork() == 0:
                time.sleep(60)
        time.sleep(60)
    elif what == "code":
        Path("../RAN").touch()
    elif what == "outside":
        Path("../elsewhere").touch()
    elif what == "silent":
        sys.exit(2)
    elif what in ("refuse", "refuse wrongly"):
        print("error: no", file=sys.stderr)
        sys.exit(2)

EXPECTED = {"accept wrongly": "refuse", "refuse wrongly": "accept", "silent": "refuse"}
WHAT = ["accept", "refuse", "crash", "traceback", "hang", "memory", "processes", "code", "outside", "silent",
        "accept wrongly", "refuse wrongly", "not made"]

def make(rng, number, material):
    return Case([WHAT[number]], EXPECTED.get(WHAT[number], "either")) if number < 12 else 1 / 0

fuzzer = Fuzzer(Path.cwd(), command, {"family": Family(100, make)},
                limits=Limits(seconds=3, bytes=300 * 2**20, processes=5))
results = sorted(fuzzer.run([f"family-{i}" for i in range(13)], 13), key=lambda r: int(r.name.partition("-")[2]))
for what, result in zip(WHAT, results):
    print(f"{what}: {', '.join(result.kinds)}")
print(report(results))
"""


def run(*args: str, folder: Path) -> tuple[int, str]:
    environment = {"PYTHONPATH": str(TOOLS), "PATH": "/usr/bin:/bin", "TMPDIR": str(folder)}
    command = [sys.executable, *args]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8")
    return done.returncode, done.stdout + done.stderr


def test_counts_whatever_is_not_handled(tmp_path: Path) -> None:
    code, printed = run("-c", WRONG, folder=tmp_path)
    assert code == 0, printed
    assert printed.splitlines()[:13] == [
        "accept: ",
        "refuse: ",
        "crash: signal",
        "traceback: traceback",
        "hang: hang",
        "memory: memory",
        "processes: processes",
        "code: code ran",
        "outside: wrote outside",
        "silent: silent",
        "accept wrongly: accepted",
        "refuse wrongly: refused",
        "not made: not made",
    ]
    assert re.search(r"traceback \(1\): KeyError <- .*\(command\)", printed)  # the cause, by which findings are grouped


def test_a_part_of_the_cases_is_handled(tmp_path: Path) -> None:
    code, printed = run(str(TOOLS / "fuzz.py"), "--number=60", folder=tmp_path)
    assert code == 0, printed
    assert re.search(r"^0 of 6\d cases are not handled", printed, re.M)
