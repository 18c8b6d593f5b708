"""Fixtures: the same random state for every test, the command line, and one small run that many tests use."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import settings

from lit_lm.__main__ import main
from lit_lm.data.readers import TextPart

settings.register_profile("lit-lm", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("lit-lm")
torch.set_num_threads(1)  # the tensors are tiny, and threads would only wait for each other

Command = Callable[..., str]

TINY = [
    "--model.net={vocab_size: 300, context_length: 32, d_model: 16, num_layers: 1, num_heads: 2}",
    "--data.batch_size=4",
    "--trainer.accelerator=cpu",
]


def write_jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows_per_group: int | None = None, **columns: list[Any]) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=rows_per_group)
    return path


def joined(pieces: Iterable[TextPart]) -> list[str]:
    """Join pieces to documents. The last piece must end a document."""
    documents, begun = [], []
    for text, ends in pieces:
        begun.append(text)
        if ends:
            documents.append("".join(begun))
            begun = []
    assert not begun
    return documents


@pytest.fixture(autouse=True)
def _same_arithmetic() -> None:
    torch.manual_seed(0)
    torch.set_flush_denormal(False)  # a command before this test may have set it for the process


@pytest.fixture(autouse=True)
def _same_environment() -> Iterator[None]:
    """Undo what a test writes to the environment, such as the port that Lightning chose for its processes."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A temporary home folder, for the default cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of 60 short documents."""
    animals = ["cat", "dog", "owl", "fox", "hen", "pig"]
    stories = [f"The {a} saw a {b}. The {b} ran home.\n{n} days later they met." for n, a, b in zip(
        range(60), animals * 10, (animals[1:] + animals[:1]) * 10, strict=True
    )]  # fmt: skip
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("<|endoftext|>".join(stories), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory, corpus: Path, cache: Path) -> Path:
    """The folder of a run of 12 steps, validated every 5 steps."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(
            ["fit", *TINY, "--name=tiny", f"--data.source={corpus}", f"--data.cache_dir={cache}",
             "--trainer.max_steps=12", "--trainer.val_check_interval=5", "--trainer.log_every_n_steps=2"]
        )  # fmt: skip
    return folder / "logs" / "tiny" / "version_0"


@pytest.fixture
def fit_tiny(corpus: Path, cache: Path, lit_lm: Command) -> Command:
    """Run `lit-lm fit` with a tiny model on the corpus."""
    return partial(lit_lm, "fit", *TINY, f"--data.source={corpus}", f"--data.cache_dir={cache}")


@pytest.fixture
def lit_lm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command in an empty folder and return its output, or its error message if `fails`."""
    monkeypatch.chdir(tmp_path)

    def command(*args: object, fails: bool = False) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) if fails else nullcontext() as stop:
            main([str(arg) for arg in args])
        if stop is not None:
            assert stop.value.code == 2
        printed = capsys.readouterr()
        return printed.err if fails else printed.out

    return command
