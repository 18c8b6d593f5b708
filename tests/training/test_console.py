"""Lines on the console, and samples during training."""

import math
import re
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import Command
from helpers.runs import curve
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm.notebook import tqdm_notebook

from lit_lm.checkpoint import read_checkpoint
from lit_lm.inference.engine import make_engine
from lit_lm.inference.sampling import SamplingConfig, derive_seed
from lit_lm.inference.text import TextGenerator
from lit_lm.training import console
from lit_lm.training.samples import Samples

LINE = re.compile(r"^step (\d+)/6: loss (\S+), lr (\S+), ([\d,]+) tokens/s, (\d+) s$", re.MULTILINE)


@pytest.fixture
def fit(fit_tiny: Command) -> Command:
    """A run of 6 steps, validated every 3."""
    return partial(fit_tiny, "--trainer.max_steps=6", "--trainer.val_check_interval=3", "--trainer.log_every_n_steps=1")


def sample_texts() -> list[str]:
    events = EventAccumulator("logs/run/version_0").Reload()
    return [event.tensor_proto.string_val[0].decode() for event in events.Tensors("sample/text_summary")]


def test_a_line_every_n_steps_shows_loss_learning_rate_speed_and_time(fit: Command) -> None:
    schedule = ["--model.optimizer=AdamW", "--model.optimizer.lr=0.01", "--model.schedule=WarmupCosine",
                "--model.schedule.warmup_steps=2"]  # fmt: skip
    printed = fit("--console.every_n_steps=2", *schedule)
    steps, losses, rates, _, seconds = zip(*LINE.findall(printed), strict=True)
    assert steps == ("2", "4", "6")
    logged = dict(curve("run", "train/loss"))
    assert [float(loss) for loss in losses] == pytest.approx([logged[int(step)] for step in steps], abs=6e-4)
    cosine = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 1 - 2) / 4)) for step in (4, 6)]
    assert [float(rate) for rate in rates] == pytest.approx([0.01 * 2 / 3, *(0.01 * c for c in cosine)], rel=6e-3)
    assert [int(s) for s in seconds] == sorted(int(s) for s in seconds)


def test_a_resumed_run_prints_only_its_own_steps(fit: Command) -> None:
    fit("--console.every_n_steps=2", "--trainer.max_steps=4")
    assert [match[0] for match in LINE.findall(fit("--console.every_n_steps=2", "--ckpt_path=last"))] == ["6"]


def test_without_an_interval_a_short_run_prints_no_lines(fit: Command) -> None:
    assert not LINE.findall(fit())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--console.every_n_steps=0", "every_n_steps is 0; it must be at least 1"),
        ("--samples.max_new_tokens=0", "max_new_tokens is 0; it must be at least 1"),
        ("--samples.prompt=" + "The cat saw. " * 20, "do not fit into the context of 32"),
        ("--samples.prompt=a\udcff", "samples.prompt: the prompt is not Unicode text"),
    ],
)
def test_bad_values_are_refused(option: str, message: str, fit: Command) -> None:
    assert message in fit(option, fails=True)
    assert not list(Path("logs").rglob("*.ckpt"))


def test_the_sample_at_each_validation_continues_the_prompt(fit: Command) -> None:
    printed = fit("--samples.prompt=The cat", "--samples.max_new_tokens=5")
    texts = sample_texts()
    assert len(texts) == 2
    checkpoint = read_checkpoint("logs/run/version_0/checkpoints/last.ckpt")
    assert checkpoint.tokenizer is not None
    generator = TextGenerator(checkpoint.tokenizer, make_engine(checkpoint.transformer()))
    sampling = SamplingConfig(max_new_tokens=5)
    (text,) = generator.generate("The cat", sampling, seed=derive_seed(0, "sample story"))
    assert texts[-1] == "The cat" + text.continuation
    shown = re.findall("^sample: (.*)$", printed, re.MULTILINE)
    assert [line[:7] for line in shown] == ["The cat"] * 2
    assert len(text.tokens) == 5


def test_by_default_a_sample_starts_a_text_and_is_printed_without_loggers(fit: Command) -> None:
    printed = fit()
    (first, last) = sample_texts()
    assert first != last
    shown = re.findall("^sample: (.*)$", printed, re.MULTILINE)
    assert len(shown) == 2
    assert re.findall("^sample: (.*)$", fit("--trainer.logger=false", "--name=other"), re.MULTILINE) == shown


class Recorder:
    """What `Samples` needs of a Trainer and its console."""

    def __init__(self, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lines: list[str] = []
        self.state, self.sanity_checking, self.is_global_zero, self.loggers = self, False, True, []
        self.fn = "fit"
        self.progress_bar_callback = self
        monkeypatch.setattr(Samples, "_sample", lambda *_: text)

    def print(self, line: str) -> None:
        self.lines.append(line)


def test_a_long_sample_is_cut_to_one_line_without_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_lm.model.config import TransformerConfig
    from lit_lm.training.module import LitLM

    trainer: Any = Recorder("One\n\ntwo \x1b[31m three " + "word " * 1000, monkeypatch)
    samples = Samples()
    samples._ids = [0]
    module = LitLM(TransformerConfig(vocab_size=4, context_length=4, d_model=4, num_layers=1, num_heads=1))
    samples.on_validation_end(trainer, module)
    (line,) = trainer.lines
    assert line.startswith("sample: One two  [31m three word")
    assert len(line) == len("sample: ") + Samples.SHOWN_CHARACTERS + len("...")
    assert line.isprintable()


def test_every_n_steps_shows_no_bar_on_a_terminal(
    fit: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert "training:" in fit() + capsys.readouterr().err
    assert "training:" not in fit("--console.every_n_steps=3") + capsys.readouterr().err


@pytest.mark.parametrize(("has_widgets", "expected"), [(True, tqdm_notebook), (False, None)])
def test_a_notebook_shows_a_widget_if_it_can(has_widgets: bool, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    monkeypatch.setattr(console, "find_spec", lambda name: object() if has_widgets and name == "ipywidgets" else None)
    assert console._bar_type() is expected
