"""`lit-lm eval` as a command. How the model is scored: tests/evaluation."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import lm_eval.tasks.manager
import pytest
import torch
from conftest import Command, write_jsonl

import lit_lm
from lit_lm.evaluation import bundled
from lit_lm.inference.language_model import LanguageModel

CHOICES = [
    ("The cat", [" saw the dog.", " dog the saw."], 0),
    ("The fox ran", [" away away", " home."], 1),
    ("3 days later", [" they met.", " met they.", " owl"], 0),
    ("The owl", [" saw a hen.", " ran."], 0),
    ("", ["The pig ran home.", "Pig the home ran."], 1),
]
TASK = """
task: mine
dataset_path: json
dataset_kwargs:
  data_files: data/items.jsonl
test_split: train
output_type: {output_type}
doc_to_text: "{{{{start}}}}"
doc_to_target: {target}
target_delimiter: ""
metric_list:
  - metric: {metric}
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library reads the home folder when it is imported, which may be before the tests."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture(scope="module")
def model(run_folder: Path) -> LanguageModel:
    return lit_lm.load(run_folder, device="cpu")


def write_task(folder: Path, target: str = "right", output_type: str = "multiple_choice", metric: str = "acc") -> Path:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    write_jsonl(
        folder / "data" / "items.jsonl",
        *({"start": start, "ends": ends, "right": right} for start, ends, right in CHOICES),
    )
    path = folder / "task.yaml"
    choices = 'doc_to_choice: "{{ends}}"\n' if output_type == "multiple_choice" else ""
    path.write_text(TASK.format(target=target, output_type=output_type, metric=metric) + choices, encoding="utf-8")
    return path


def taken(model: LanguageModel, start: str, ends: list[str]) -> int:
    """The choice that makes the likeliest text."""
    before = model.log_probabilities(start).sum() if start else 0
    scores = [float(model.log_probabilities(start + end).sum() - before) for end in ends]
    return scores.index(max(scores))


def test_the_accuracy_of_a_task_of_ones_own_is_that_computed_by_hand(
    run_folder: Path, model: LanguageModel, lit_lm: Command, tmp_path: Path
) -> None:
    path = write_task(tmp_path / "elsewhere")
    right = [taken(model, start, ends) == answer for start, ends, answer in CHOICES]
    assert 0 < sum(right) < 5
    for limit in (5, 3):
        out = lit_lm("eval", "--ckpt_path", run_folder, "--tasks", path, "--limit", limit, "--device=cpu")
        mean = sum(right[:limit]) / limit
        stderr = math.sqrt(mean * (1 - mean) / (limit - 1))
        chance = (2.5 - 0.5 + 1 / 3) / 5 if limit == 5 else (1 + 1 / 3) / 3
        assert out.splitlines()[1].split() == [
            "mine", "acc", f"{mean:.4f}", f"{stderr:.4f}", str(limit), f"{chance:.2f}"
        ]  # fmt: skip


def test_other_kinds_of_tasks_work(run_folder: Path, model: LanguageModel, lit_lm: Command, tmp_path: Path) -> None:
    text = "The owl saw a hen."
    path = write_task(tmp_path, f'"{text}"', "loglikelihood_rolling", "bits_per_byte")
    out = lit_lm("eval", "--ckpt_path", run_folder, "--tasks", path, "--device=cpu")
    assert out.splitlines()[1].split() == ["mine", "bits_per_byte", f"{model.bits_per_byte(text):.4f}", "5"]
    path = write_task(tmp_path, '"{{ends[0]}}"', "generate_until", "exact_match")
    out = lit_lm("eval", "--ckpt_path", run_folder, "--tasks", path, "--device=cpu")
    assert out.splitlines()[1].split() == ["mine", "exact_match", "0.0000", "0.0000", "5"]


def test_the_bundled_tasks_are_reported_by_group(run_folder: Path, lit_lm: Command) -> None:
    command = ("eval", "--ckpt_path", run_folder, "--limit=4", "--device=cpu", "--batch_size=8", "--output=a.json")
    out = lit_lm(*command)
    content = Path("a.json").read_text(encoding="utf-8")
    assert lit_lm(*command) == out
    assert Path("a.json").read_text(encoding="utf-8") == content
    heading, *lines = out.splitlines()
    assert heading.split() == ["task", "metric", "value", "stderr", "items", "chance"]
    assert [line.split()[0] for line in lines] == bundled.names()
    assert len({line.index("acc") for line in lines}) == len(set(map(len, lines))) == 1
    scores = json.loads(content)["scores"]
    assert [score["task"] for score in scores] == bundled.names()
    for group, tasks in bundled.groups().items():
        (mean,) = [score for score in scores if score["task"] == group]
        parts = [score for score in scores if score["group"] == group]
        assert [score["task"] for score in parts] == list(tasks)
        assert mean["value"] == pytest.approx(sum(score["value"] for score in parts) / len(parts))
        assert mean["items"] == 4 * len(parts)
        assert {score["chance"] for score in (mean, *parts)} == {0.25 if "stories" in group else 0.5}
    assert json.loads(content)["checkpoint"]["path"] == str(run_folder / "checkpoints" / "best.ckpt")


def test_a_group_and_a_task_are_chosen_by_name(run_folder: Path, lit_lm: Command) -> None:
    options = ("--ckpt_path", run_folder, "--limit=2", "--device=cpu")
    out = lit_lm("eval", *options, "--tasks", "grammar_zh_aspect,stories_en", "grammar_en_article")
    assert [line.split()[0] for line in out.splitlines()[1:]] == [
        "stories_en", "stories_en_cloze", "stories_en_ending", "grammar_zh_aspect", "grammar_en_article"
    ]  # fmt: skip
    error = lit_lm("eval", *options, "--tasks", "grammar_en", "grammar_en_article", fails=True)
    assert "grammar_en_article has the task grammar_en_article, which is already chosen" in error


@pytest.fixture
def harness_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small folder instead of the tasks that come with the harness, which take seconds to read."""
    folder = tmp_path / "harness"
    write_task(folder)
    (folder / "hub.yaml").write_text("task: from_hub\ndataset_path: nobody/nothing\noutput_type: multiple_choice\n")
    monkeypatch.setattr(lm_eval.tasks.manager, "__file__", str(folder / "manager.py"))
    return folder


def test_tasks_that_are_not_bundled_come_from_the_harness(
    run_folder: Path, harness_tasks: Path, lit_lm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--ckpt_path", run_folder, "--device=cpu", "--limit=1")
    error = lit_lm("eval", *options, "--tasks=grammar_em", fails=True)
    assert error.splitlines() == [
        "not bundled, looking among the harness's tasks: grammar_em",
        "lit-lm: error: there is no task grammar_em; did you mean grammar_en?",
    ]
    assert "did you mean from_hub?" in lit_lm("eval", *options, "--tasks=fromhub", fails=True)
    assert "the bundled ones are grammar_en, " in lit_lm("eval", *options, "--tasks=xxx", fails=True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    error = lit_lm("eval", *options, "--tasks=from_hub", fails=True)
    assert "error: from_hub cannot be loaded; tasks that are not bundled need a network: " in error
    monkeypatch.chdir(harness_tasks)
    assert lit_lm("eval", *options, "--tasks=mine").splitlines()[1].split()[0] == "mine"


def test_mistakes_are_reported_in_a_line(
    run_folder: Path, lit_lm: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--ckpt_path", run_folder, "--device=cpu")
    assert "limit is 0; it must be at least 1" in lit_lm("eval", "--limit=0", fails=True)
    assert "batch_size is -1; it must be at least 1" in lit_lm("eval", "--batch_size=-1", fails=True)
    assert "--output . is a folder; pass the name of a file" in lit_lm("eval", "--output=.", fails=True)
    assert "--tasks has no names" in lit_lm("eval", "--tasks=,", fails=True)
    assert "there is no file no.yaml" in lit_lm("eval", *options, "--tasks=no.yaml", fails=True)
    path = write_task(tmp_path, target='"{{ends}}"', output_type="loglikelihood_rolling", metric="bits_per_byte")
    error = lit_lm("eval", *options, "--tasks", path, fails=True)
    assert error.startswith("lit-lm: error: the harness cannot evaluate these tasks: AttributeError: 'list' object")
    path = write_task(tmp_path, metric="nothing")
    for old, new in (("", ""), ("data/items", "data/no"), ("task: mine", "x: y"), ("task: mine", "[")):
        path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
        error = lit_lm("eval", *options, "--tasks", path, fails=True)
        assert re.fullmatch(r"lit-lm: error: task.yaml cannot be loaded: \w+: .*\n", error)
    torch.save({}, "no.ckpt")
    assert "no.ckpt" in lit_lm("eval", "--ckpt_path=no.ckpt", fails=True)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "lit_lm.evaluation.evaluate", raising=False)
    assert "lm_eval is missing; pip install 'lit-lm[eval]'" in lit_lm("eval", *options, fails=True)


WITHOUT_NETWORK = """
import sys
from lit_lm.__main__ import main
from lit_lm.cli.evaluate import make_parser
make_parser("")
assert not {"lm_eval", "datasets"} & sys.modules.keys(), "the parser, which completion needs, imports the harness"
def watch(event, _):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        sys.exit(event)
sys.addaudithook(watch)
main(sys.argv[1:])
"""


def test_nothing_connects_to_a_network(run_folder: Path, tmp_path: Path) -> None:
    task = write_task(tmp_path)
    options = ["--ckpt_path", str(run_folder), "--limit=1", "--device=cpu", "--tasks", "grammar_en_article", str(task)]
    command = [sys.executable, "-W", "error", "-c", WITHOUT_NETWORK, "eval", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["task", "grammar_en_article", "mine"]
