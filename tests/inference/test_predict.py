"""lit-lm predict: order, batches, going on after a break."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from filelock import FileLock

from lit_lm.inference import predict as predictions
from lit_lm.inference.predict import PredictionWriter

Predict = Callable[..., str]


@pytest.fixture
def predict(run_folder: Path, lit_lm: Command) -> Predict:
    """Predicts 20 prompts of many lengths, two samples each, into out.jsonl."""
    words = ["The", "cat", "saw", "a", "dog", "and", "ran", "home", "to", "the", "owl", "who", "slept"]
    lines = [json.dumps({"prompt": " ".join(words[: 1 + 5 * n % 12]), "n": n}) for n in range(20)]
    Path("prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")

    def run(*options: object, fails: bool = False) -> str:
        arguments: list[object] = ["--prompts_file=prompts.jsonl", "--max_new_tokens=5", "--num_samples=2"]
        output = [] if any(str(option).startswith("--output") for option in options) else ["--output=out.jsonl"]
        return lit_lm("predict", "--ckpt_path", run_folder, *arguments, *output, *options, fails=fails)

    return run


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_bytes().decode().splitlines()]


def test_rows_are_in_order_and_the_same_in_any_batch(predict: Predict, run_folder: Path, lit_lm: Command) -> None:
    predict("--batch_size=7")
    predict("--batch_size=1", "--output=one.jsonl")
    assert [row["n"] for row in rows("out.jsonl")] == [n for n in range(20) for _ in range(2)]
    assert Path("one.jsonl").read_bytes() == Path("out.jsonl").read_bytes()
    assert [row["sample"] for row in rows("out.jsonl")] == [0, 1] * 20
    generated = json.loads(lit_lm("generate", "--ckpt_path", run_folder, "The", "--max_new_tokens=5", "--json"))
    assert all(row.keys() == generated.keys() | {"n"} for row in rows("out.jsonl"))
    row = rows("out.jsonl")[1]
    samples = lit_lm("generate", "--ckpt_path", run_folder, row["prompt"], "--max_new_tokens=5", "--num_samples=2",
                     "--seed", row["seed"], "--json").splitlines()  # fmt: skip
    assert json.loads(samples[1]) | {"n": 0} == row


def test_a_broken_run_goes_on_and_does_nothing_twice(predict: Predict, monkeypatch: pytest.MonkeyPatch) -> None:
    predict("--output=whole.jsonl", "--batch_size=3")
    whole = Path("whole.jsonl").read_bytes()
    write, written = PredictionWriter._write, []

    def breaks(self: PredictionWriter, prompts: Any) -> None:
        write(self, prompts)
        written.append(self._next)
        if len(written) == 5:
            raise OSError("no power")

    with monkeypatch.context() as patch:
        patch.setattr(PredictionWriter, "_write", breaks)
        assert "no power" in predict("--batch_size=1", fails=True)
    begun = Path("out.jsonl").read_bytes()
    assert whole.startswith(begun)
    made: list[int] = []
    monkeypatch.setattr(predictions, "whole_text", lambda *args, f=predictions.whole_text: made.append(1) or f(*args))
    with open("out.jsonl", "ab") as file:
        file.write(whole[len(begun) : len(begun) + 9])  # half a line
    done = begun.count(b"\n") // 2
    assert f"{done} of 20 prompts are done already" in predict("--batch_size=3")
    assert Path("out.jsonl").read_bytes() == whole
    assert len(made) == 2 * (20 - done)
    assert "20 of 20 prompts are done already" in predict()
    assert Path("out.jsonl").read_bytes() == whole
    assert not Path("out.jsonl.lock").exists()


@pytest.mark.parametrize("size", [0, 1, 57, 300, 800])
def test_wherever_the_file_is_cut_it_becomes_whole(predict: Predict, size: int) -> None:
    predict()
    whole = Path("out.jsonl").read_bytes()
    Path("out.jsonl").write_bytes(whole[:size])
    predict()
    assert Path("out.jsonl").read_bytes() == whole


def test_what_was_made_otherwise_is_not_mixed(predict: Predict) -> None:
    predict()
    before = Path("out.jsonl").read_bytes()
    message = predict("--temperature=0.3", "--seed=4", fails=True)
    assert "temperature was 0.8 and is 0.3" in message
    assert "seed was 0 and is 4" in message
    assert "give another --output, or remove out.jsonl" in message
    with open("prompts.jsonl", "a", encoding="utf-8") as file:
        file.write('\n{"prompt": "more"}')
    assert "the prompts changed" in predict(fails=True)
    assert Path("out.jsonl").read_bytes() == before
    Path("out.jsonl").unlink()
    predict()
    assert len(rows("out.jsonl")) == 42


def test_a_file_of_another_kind_is_left_alone(predict: Predict) -> None:
    Path("mine.jsonl").write_text("my notes\n", encoding="utf-8")
    assert "mine.jsonl.made_from.json, which says" in predict("--output=mine.jsonl", fails=True)
    predict()
    lines = Path("out.jsonl").read_bytes().splitlines(keepends=True)
    Path("out.jsonl").write_bytes(b"".join([*lines[:4], b'{"prompt": "another"}\n', *lines[5:]]))
    assert "out.jsonl, line 5 is no continuation of the prompt that belongs there" in predict(fails=True)
    with FileLock("out.jsonl.lock"):
        assert "being written by another process" in predict(fails=True)
    assert Path("mine.jsonl").read_text(encoding="utf-8") == "my notes\n"


def test_a_prompt_without_room_is_named_before_anything_is_made(predict: Predict) -> None:
    with open("prompts.jsonl", "a", encoding="utf-8") as file:
        file.write("\n" + json.dumps({"prompt": "word " * 40}))
    assert "prompts.jsonl, line 21: a prompt of " in predict(fails=True)
    assert Path("out.jsonl").read_bytes() == b""
    predict("--sliding_window=true")
    assert len(rows("out.jsonl")) == 42


def test_stop_strings_end_a_continuation(predict: Predict) -> None:
    predict("--output=free.jsonl")
    predict("--stop=e", "--stop=a")
    for free, stopped in zip(rows("free.jsonl"), rows("out.jsonl"), strict=True):
        text = free["continuation"]
        size = min((text.index(stop) for stop in "ea" if stop in text), default=len(text))
        assert stopped["continuation"] == text[:size]
        assert (stopped["ended"] == "stop") == (size < len(text))


def test_a_prompt_that_is_no_text_is_named(predict: Predict) -> None:
    Path("prompts.jsonl").write_text('{"prompt": "The"}\n{"prompt": "\\ud800"}\n', encoding="utf-8")
    assert "prompts.jsonl, line 2: the prompt is not Unicode text" in predict(fails=True)


def test_two_processes_write_what_one_does(predict: Predict, run_folder: Path) -> None:
    predict("--batch_size=3")
    command = ["predict", "--ckpt_path", str(run_folder), "--prompts_file=prompts.jsonl", "--max_new_tokens=5",
               "--num_samples=2", "--batch_size=3", "--output=two.jsonl", "--trainer.devices=2"]  # fmt: skip
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "lit_lm", *command, "--trainer.accelerator=cpu"], check=True, timeout=100,
                   env=one_thread, capture_output=True)  # fmt: skip
    assert Path("two.jsonl").read_bytes() == Path("out.jsonl").read_bytes()
