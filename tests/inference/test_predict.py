"""lit-lm predict: order, batches, resuming after an interruption; the same from Python."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command
from filelock import FileLock
from lightning.pytorch import Callback, Trainer

from lit_lm.inference import predictions
from lit_lm.inference.generate import generate
from lit_lm.inference.predict import PredictModule
from lit_lm.inference.predictions import PredictionWriter
from lit_lm.inference.prompts import Prompt
from lit_lm.inference.sampling import SamplingConfig
from lit_lm.inference.text import stop_string_criterion
from lit_lm.model.config import TransformerConfig
from lit_lm.model.transformer import Transformer
from lit_lm.tokenizer.tokenizer import Tokenizer

Predict = Callable[..., str]


@pytest.fixture
def predict(run_folder: Path, lit_lm: Command) -> Predict:
    """Continues 20 prompts of different lengths, two samples each, to out.jsonl."""
    words = ["The", "cat", "saw", "a", "dog", "and", "ran", "home", "to", "the", "owl", "who", "slept"]
    lines = [json.dumps({"prompt": " ".join(words[: 1 + 5 * n % 12]), "n": n}) for n in range(20)]
    Path("prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")

    def run(*options: object, fails: bool = False) -> str:
        arguments: list[object] = ["--prompt_file=prompts.jsonl", "--max_new_tokens=5", "--num_samples=2"]
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


def test_an_interrupted_run_resumes_and_generates_nothing_twice(
    predict: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict("--output=whole.jsonl", "--batch_size=3")
    whole = Path("whole.jsonl").read_bytes()
    step = PredictModule.predict_step

    def fails(self: PredictModule, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 5:
            raise OSError("no power")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(PredictModule, "predict_step", fails)
        assert "no power" in predict("--batch_size=1", fails=True)
    started = Path("out.jsonl").read_bytes()
    assert started
    assert whole.startswith(started)
    made: list[int] = []
    monkeypatch.setattr(predictions, "whole_text", lambda *args, f=predictions.whole_text: made.append(1) or f(*args))
    with open("out.jsonl", "ab") as file:
        file.write(whole[len(started) : len(started) + 9])  # half a line
    done = started.count(b"\n") // 2
    assert f"{done} of 20 prompts are already done" in predict("--batch_size=3")
    assert Path("out.jsonl").read_bytes() == whole
    assert len(made) == 2 * (20 - done)
    assert "20 of 20 prompts are already done" in predict()
    assert Path("out.jsonl").read_bytes() == whole
    assert not Path("out.jsonl.lock").exists()


@pytest.mark.parametrize("size", [0, 1, 57, 300, 800])
def test_a_file_that_was_cut_anywhere_is_completed(predict: Predict, size: int) -> None:
    predict()
    whole = Path("out.jsonl").read_bytes()
    Path("out.jsonl").write_bytes(whole[:size])
    predict()
    assert Path("out.jsonl").read_bytes() == whole


def test_a_file_is_not_resumed_with_other_settings(predict: Predict) -> None:
    predict()
    before = Path("out.jsonl").read_bytes()
    message = predict("--temperature=0.3", "--seed=4", fails=True)
    assert "temperature was 0.8 and is 0.3" in message
    assert "seed was 0 and is 4" in message
    assert "choose another --output, or delete out.jsonl to start over" in message
    with open("prompts.jsonl", "a", encoding="utf-8") as file:
        file.write('\n{"prompt": "more"}')
    assert "the prompts changed" in predict(fails=True)
    assert Path("out.jsonl").read_bytes() == before
    Path("out.jsonl").unlink()
    predict()
    assert len(rows("out.jsonl")) == 42


def test_a_file_that_predict_did_not_write_is_unchanged(predict: Predict) -> None:
    Path("mine.jsonl").write_text("my notes\n", encoding="utf-8")
    assert "mine.jsonl.made_from.json, which records its settings" in predict("--output=mine.jsonl", fails=True)
    predict()
    lines = Path("out.jsonl").read_bytes().splitlines(keepends=True)
    Path("out.jsonl").write_bytes(b"".join([*lines[:4], b'{"prompt": "another"}\n', *lines[5:]]))
    assert "out.jsonl, line 5 is not a continuation of the expected prompt" in predict(fails=True)
    with FileLock("out.jsonl.lock"):
        assert "being written by another process" in predict(fails=True)
    assert Path("mine.jsonl").read_text(encoding="utf-8") == "my notes\n"


def test_a_prompt_that_is_too_long_is_reported_before_anything_is_written(predict: Predict) -> None:
    with open("prompts.jsonl", "a", encoding="utf-8") as file:
        file.write("\n" + json.dumps({"prompt": "word " * 40}))
    assert "prompts.jsonl, line 21: a prompt of " in predict(fails=True)
    assert not Path("out.jsonl").exists()
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


def test_a_prompt_that_is_not_text_is_reported(predict: Predict) -> None:
    Path("prompts.jsonl").write_text('{"prompt": "The"}\n{"prompt": "\\ud800"}\n', encoding="utf-8")
    assert "prompts.jsonl, line 2: the prompt is not Unicode text" in predict(fails=True)
    Path("prompts.jsonl").write_text('{"prompt": "The"}\n{"prompt": "A", "id": ["\\ud800"]}\n', encoding="utf-8")
    assert "prompts.jsonl, line 2: a field is not Unicode text" in predict(fails=True)


@pytest.mark.parametrize(("name", "value"), [("prompt", "Once"), ("stop", "END"), ("prompt", 5), ("stop", [5])])
def test_prompts_and_stop_strings_of_a_config_must_be_lists(predict: Predict, name: str, value: object) -> None:
    Path("p.yaml").write_text(json.dumps({name: value}), encoding="utf-8")
    assert f"{name} is {value!r}; in a config, it must be a list of texts" in predict("--config=p.yaml", fails=True)


def test_two_processes_write_the_same_file_as_one(predict: Predict, run_folder: Path) -> None:
    predict("--batch_size=3")
    command = ["predict", "--ckpt_path", str(run_folder), "--prompt_file=prompts.jsonl", "--max_new_tokens=5",
               "--num_samples=2", "--batch_size=3", "--output=two.jsonl", "--trainer.devices=2"]  # fmt: skip
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "lit_lm", *command, "--trainer.accelerator=cpu"], check=True, timeout=100,
                   env=one_thread, capture_output=True)  # fmt: skip
    assert Path("two.jsonl").read_bytes() == Path("out.jsonl").read_bytes()


@pytest.mark.parametrize("callbacks", ["{class_path: Timer}", "[{class_path: Timer}]"])
def test_user_callbacks_run_together_with_the_writer(predict: Predict, callbacks: str) -> None:
    predict(f"--trainer.callbacks={callbacks}")
    assert len(rows("out.jsonl")) == 40


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "64-true"])
def test_every_precision_of_the_cpu_works(predict: Predict, precision: str) -> None:
    predict(f"--trainer.precision={precision}")
    assert len(rows("out.jsonl")) == 40


def test_float16_on_the_cpu_is_refused(predict: Predict) -> None:
    assert "precision is 16-true, which needs a GPU" in predict("--trainer.precision=16-true", fails=True)


ignore_lightning_warnings = pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:.*does not have many workers")
"""Warnings of Lightning that lit-lm suppresses on the command line."""


def trainer(*callbacks: Callback) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, callbacks=list(callbacks),
    )  # fmt: skip


@pytest.fixture
def make_module() -> Callable[..., PredictModule]:
    """Makes a module with random weights and eight prompts of different lengths, two samples each."""
    texts = ["The", "cat saw", "", "宝玉", "a dog saw a cat", "The dog", "saw", "The cat saw a dog"]
    tokenizer = Tokenizer.train([*texts, "宝玉笑道。"], 270)
    shape = {"vocab_size": tokenizer.vocab_size, "context_length": 24, "d_model": 16, "num_layers": 1, "num_heads": 2}
    net = Transformer(TransformerConfig(**shape))
    prompts = [Prompt(text, f"text {number}") for number, text in enumerate(texts)]
    sampling = SamplingConfig(num_samples=2, max_new_tokens=12)
    return lambda **options: PredictModule(net, tokenizer, prompts, sampling, batch_size=3, seed=5, **options)


def predicted(module: PredictModule) -> dict[int, Any]:
    """Continuations that a plain Trainer returns, by prompt number."""
    batches = trainer().predict(module)
    assert batches is not None
    numbers = [number for batch, _ in module.predict_dataloader() for number in batch]
    continuations = [each for batch in batches for each in batch]
    return dict(zip(numbers, continuations, strict=True))


@ignore_lightning_warnings
@pytest.mark.parametrize("stop", [(), ("a", "宝")])
def test_predict_module_returns_the_same_as_generate(make_module: Callable[..., Any], stop: tuple[str, ...]) -> None:
    module = make_module(stop=stop)
    expected = generate(
        module.net,
        module.ids,
        module.sampling,
        seeds=[module.prompt_seed(number) for number in range(8)],
        end_id=module.tokenizer.end_id,
        criterion=stop_string_criterion(module.tokenizer, stop),
    )
    found = predicted(module)
    assert found.keys() == set(range(8))
    for number, continuations in enumerate(expected):
        for ours, theirs in zip(found[number], continuations, strict=True):
            assert (ours.ids, ours.ended) == (theirs.ids, theirs.ended)
            assert ours.log_probabilities == pytest.approx(theirs.log_probabilities, abs=1e-4)
    assert any(each.ended == "stop" for continuations in expected for each in continuations) == bool(stop)


@ignore_lightning_warnings
def test_predict_module_uses_the_current_weights(make_module: Callable[..., Any]) -> None:
    module = make_module()
    before = predicted(module)
    with torch.no_grad():
        module.net.head.weight.normal_()
    after = predicted(module)
    assert after != before
    assert after == predicted(make_module())


@ignore_lightning_warnings
def test_prediction_writer_resumes_when_used_from_python(make_module: Callable[..., Any], tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    for _ in range(2):
        trainer(PredictionWriter(output, {"version": 1})).predict(make_module(), return_predictions=False)
    assert len(rows(str(output))) == 16
    with pytest.raises(ValueError, match="version was 1 and is 2"):
        trainer(PredictionWriter(output, {"version": 2})).predict(make_module(), return_predictions=False)
