"""Every command in README and docs runs, shrunk where it is long; links and anchors lead somewhere.

A block is expanded by a shell whose programs only record how they were called; the calls are then made in this process.
A command whose comment says that it needs a network, a GPU or a server, or runs until Ctrl-C, is left out.
"""

import base64
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.parse
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ablate
import numpy as np
import pytest
import torch
import zstandard
from helpers.own_classes import MYLAB

from lit_lm.__main__ import main
from lit_lm.data import sources
from lit_lm.tokenizer.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NOT_HERE = re.compile(r"needs a (network|GPU|server)|stop it with Ctrl-C|需要(联网|网络| ?GPU|服务器)|按 Ctrl-C 停止")
PROGRAMS = ("lit-lm", "python", "python3", "make", "pip", "tensorboard")
RECORD = """#!{python}
import base64, json, os, sys
read = "" if sys.stdin.isatty() else sys.stdin.buffer.read()
with open({log!r}, "a") as log:
    log.write(json.dumps([os.path.basename(sys.argv[0]), sys.argv[1:], base64.b64encode(read).decode()]) + "\\n")
"""
SMALL_NET = (
    "{vocab_size: 700, context_length: 32, d_model: 16, num_layers: 1, num_heads: 2, num_kv_heads: null, d_ff: 32}"
)
SHRINK = {
    "fit": ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.accelerator=cpu",
            "--trainer.devices=1", "--trainer.precision=32-true", "--model.compile=false",
            f"--model.net={SMALL_NET}", "--data.batch_size=2", "--data.micro_batch_size=null", "--data.stride=null"],
    "eval": ["--limit=2"],
    "prepare": [f"--model.net={SMALL_NET}"],
    "data": [f"--model.net={SMALL_NET}", "--data.stride=null"],
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """A program that a block runs."""

    program: str
    args: list[str]
    stdin: bytes


def commands(kind: str, text: str) -> tuple[str, bytes]:
    """The shell code of a block, and what is typed into its programs."""
    if kind == "sh":
        lines = text.replace("\\\n", "").splitlines()
        return "\n".join(line for line in lines if not NOT_HERE.search(line)), b""
    lines = text.splitlines()
    typed = "".join(line[2:] + "\n" for line in lines if line.startswith("> "))
    return "\n".join(line[2:] for line in lines if line.startswith("$ ")), typed.encode()


def calls(kind: str, text: str, folder: Path, stubs: Path) -> list[Call]:
    """The calls of a block, in order."""
    log = stubs / "log"
    log.write_text("")
    for program in PROGRAMS:
        stub = stubs / program
        stub.write_text(RECORD.format(python=sys.executable, log=str(log)))
        stub.chmod(0o755)
    code, typed = commands(kind, text)
    path = f"{stubs}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", code],
        cwd=folder,
        input=typed,
        capture_output=True,
        env=os.environ | {"PATH": path},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
    recorded = [json.loads(line) for line in log.read_text().splitlines()]
    return [Call(name, args, base64.b64decode(stdin)) for name, args, stdin in recorded]


def small_files(folder: Path) -> None:
    """What the commands of the docs expect in the working directory."""
    words = "The cat and the dog saw a bird. 从前有一只小狗，小狗喜欢小猫。 It flew away, and they ran home. "
    text = "<|endoftext|>".join(f"{words}{n} {words[: 20 + n % 40]}" for n in range(200))
    parts = ("tinystories-sample-train", "tinystories-sample-valid", "english-train", "english-test")
    for name in ("my", "input", "FILE", "text", "tinyshakespeare", "hongloumeng", "the-verdict", "我的文本", *parts):
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    rows = "".join(json.dumps({"story": part, "text": part}) + "\n" for part in text.split("<|endoftext|>"))
    for parent in ("corpus", "语料", "shards", "texts", "gpt2"):
        (folder / parent).mkdir()
    for name in ("corpus/a.jsonl", "语料/a.jsonl"):
        (folder / name).write_text(rows, encoding="utf-8")
    (folder / "texts" / "a.txt").write_text(text, encoding="utf-8")
    for n in range(2):
        (folder / "shards" / f"{n}.jsonl.zst").write_bytes(zstandard.compress(rows.encode()))
    tokenizer = Tokenizer.train(text.split("<|endoftext|>"), 300).to_json()
    for name in ("gpt2/tokenizer.json", "tokenizer.json", "A.json", "B.json"):
        (folder / name).write_text(tokenizer, encoding="utf-8")
    for name in ("train.bin", "val.bin"):
        np.arange(5000, dtype=np.uint16).__mod__(299).astype(np.uint16).tofile(folder / name)
    (folder / "prompts.jsonl").write_text('{"prompt": "The cat"}\n{"prompt": "从前"}\n', encoding="utf-8")
    (folder / "mylab.py").write_text(MYLAB, encoding="utf-8")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the configs, small files, and a run of the quick and of the Chinese recipe."""
    folder = tmp_path_factory.mktemp("docs")
    small_files(folder)
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "STORIES_BYTES", {"train": 60_000, "validation": 8_000})
        patch.chdir(folder)
        for name in ("chinese", "quick"):  # the newest is quick's
            main(["fit", f"--config=configs/{name}.yaml", *SHRINK["fit"]])
        yield folder


def run_lit_lm(call: Call, patch: pytest.MonkeyPatch) -> None:
    command = call.args[0]
    patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(call.stdin), encoding="utf-8"))
    try:
        main([*call.args, *SHRINK.get(command, [])])
    finally:
        if torch.distributed.is_initialized():  # this process runs other tests next
            torch.distributed.destroy_process_group()


def run_python(call: Call, patch: pytest.MonkeyPatch) -> None:
    if call.args[:1] == ["tools/ablate.py"]:
        run_ablate(call.args[1:], patch)
    elif call.args[0] == "-c":
        done = subprocess.run([sys.executable, *call.args], capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr.decode()
        if (corpus := Path("torch.txt")).exists():
            corpus.write_bytes(corpus.read_bytes()[:50_000])
    elif call.args[0].startswith("tools/"):
        assert (ROOT / call.args[0]).is_file()
    else:
        assert call.args[:2] == ["-m", "venv"]


def run_ablate(args: list[str], patch: pytest.MonkeyPatch) -> None:
    """Check the changes of an ablation as it does before it trains; the values of a sweep once for each change."""
    shutil.rmtree(ablate.LOGS / "ablation", ignore_errors=True)  # of another block
    check, seen = ablate.check, set[str]()

    def check_once(variant: Any) -> None:
        if variant.change not in seen:
            seen.add(variant.change)
            check(variant)
        else:
            (ablate.LOGS / variant.name).mkdir(parents=True, exist_ok=True)

    def train(variant: Any, seed: int) -> bool:
        variant.results[seed] = {"curve": [(1, 1.0)], "bits_per_byte": 1.0, "seconds": 1.0}
        return True

    patch.setattr(ablate, "check", check_once)
    patch.setattr(ablate, "train", train)
    patch.setattr(ablate, "lit_lm", lambda argv: main(argv) if argv[0] == "fit" else None)
    ablate.main(args)


def run_make(call: Call, patch: pytest.MonkeyPatch) -> None:
    assert subprocess.run(["make", "-n", *call.args], cwd=ROOT, capture_output=True).returncode == 0


RUN: dict[str, Callable[[Call, pytest.MonkeyPatch], None]] = {
    "lit-lm": run_lit_lm,
    "python": run_python,
    "python3": run_python,
    "make": run_make,
}


def blocks() -> list[Any]:
    """The blocks of all pages. One that differs from an earlier one in its comments alone is left out."""
    found: dict[str, Any] = {}
    for page in PAGES:
        for number, match in enumerate(BLOCK.finditer(page.read_text(encoding="utf-8")), start=1):
            code = re.sub(r" +# .*", "", match[2])
            found.setdefault(code, pytest.param(match[1], match[2], id=f"{page.name}-{number}"))
    return list(found.values())


@pytest.mark.parametrize(("kind", "text"), blocks())
def test_a_block_runs(
    kind: str,
    text: str,
    work: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(work)
    if kind == "python":
        if NOT_HERE.search(text):
            return
        code = text.replace("max_steps=300", "max_steps=2, logger=False, enable_checkpointing=False, accelerator='cpu'")
        code = code.replace("windows.split([16000, 1428])", "windows[:48].split([32, 16])")
        code = code.replace('"max_steps": 200, "val_check_interval": 50', '"max_steps": 2, "val_check_interval": 2')
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(code, "block", "exec"), {"__name__": "__main__"})
        return
    assert kind in ("sh", "console")
    Path("stories.jsonl").unlink(missing_ok=True)  # of another block
    for call in calls(kind, text, work, tmp_path):
        RUN[call.program](call, monkeypatch)


def anchors(page: Path) -> set[str]:
    """The anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = [re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = urllib.parse.unquote(target).partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_what_the_docs_need_is_the_least_that_it_says() -> None:
    """Marks are for what cannot run here: no command of the bundled data has one."""
    for page in PAGES:
        for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
            for line in match[2].splitlines():
                if NOT_HERE.search(line) and line.lstrip("$ ").startswith("lit-lm"):
                    words = shlex.split(line.lstrip("$ "), comments=True)
                    assert any(
                        "small" in word or "gpt2" in word or "hub:" in word or "://" in word or word == "serve"
                        for word in words
                    ), line
