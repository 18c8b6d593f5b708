"""Training from Python against the command line."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Command
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, StochasticWeightAveraging, TQDMProgressBar
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lit_lm as package
from lit_lm import Config, Run, load, train

NET = {"vocab_size": 300, "context_length": 32, "d_model": 16, "num_layers": 1, "num_heads": 2}


@pytest.fixture
def options(corpus: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of a run of 6 steps."""
    monkeypatch.chdir(tmp_path)
    return {
        "model": {"net": NET, "compile": False},
        "data": {"source": str(corpus), "cache_dir": str(cache), "batch_size": 4},
        "trainer": {"max_steps": 6, "val_check_interval": 3, "log_every_n_steps": 2, "accelerator": "cpu"},
    }


def test_a_run_equals_that_of_the_command(options: dict[str, Any], lit_lm: Command) -> None:
    run = train(options, name="python", seed=3, **{"model.optimizer": "AdamW", "model.optimizer.lr": 0.01})
    Path("config.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
    lit_lm("fit", "--config=config.yaml", "--name=command", "--seed=3", "--model.optimizer=AdamW",
           "--model.optimizer.lr=0.01")  # fmt: skip
    other = Run("command")
    assert {**run.config, "name": ""} == {**other.config, "name": ""}
    assert run.folder == Path("logs/python/version_0")
    for tag in ("train/loss", "train/learning_rate", "val/loss"):
        assert np.array_equal(run.curve(tag), other.curve(tag))
    weights, others = run.load().transformer.state_dict(), other.load().transformer.state_dict()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_a_run_shows_what_was_logged(run_folder: Path, tmp_path: Path) -> None:
    run = Run(run_folder)
    events = EventAccumulator(str(run_folder)).Reload()
    steps, losses = run.curve("val/loss")
    assert steps.tolist() == [5, 10, 12]
    assert losses.tolist() == [event.value for event in events.Scalars("val/loss")]
    assert run.tags == sorted(events.Tags()["scalars"])
    assert run.best_loss == (12, min(losses))
    assert run.config["model"]["net"]["vocab_size"] == 300
    assert run.checkpoints.keys() == {"best", "last"}
    assert run.load("last").path == run_folder / "checkpoints" / "last.ckpt"
    axes = run.plot("val/loss", axes=run.plot())
    assert [line.get_xdata().tolist() for line in axes.lines][1:] == [[5, 10, 12]] * 2
    with pytest.raises(ValueError, match=r"no curve 'val/los'; it has .*val/loss"):
        run.curve("val/los")


def test_the_newest_run_is_found_by_name_folder_or_time(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run_folder.parents[2])
    found = {Run(where).folder.resolve() for where in (None, "tiny", "logs/tiny", run_folder)}
    assert found == {run_folder.resolve()}
    assert load("tiny").path == Path("logs/tiny/version_0/checkpoints/best.ckpt")
    with pytest.raises(FileNotFoundError, match="there is no run tinny, neither as a folder nor as a name in logs"):
        Run("tinny")


class Counter(Callback):
    """Counts steps, and interrupts the run after a number of them."""

    def __init__(self, interrupt_after: int = 0) -> None:
        self.steps, self.interrupt_after = 0, interrupt_after

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps += 1
        if self.steps == self.interrupt_after:
            signal.raise_signal(signal.SIGINT)


class Halving(torch.optim.SGD):
    """An optimizer of one's own."""


def test_classes_and_callbacks_are_passed_as_objects(options: dict[str, Any]) -> None:
    counter = Counter()
    run = train(options, callbacks=[counter], **{"model.optimizer": Halving})
    assert counter.steps == 6
    assert run.config["model"]["optimizer"]["class_path"].endswith("test_train.Halving")


def test_a_progress_bar_takes_the_place_of_the_console(
    options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    train(options, callbacks=[TQDMProgressBar()])
    printed = capsys.readouterr()
    assert "6/6" in printed.out + printed.err
    assert "done: 6 steps" not in printed.out  # of the console
    with pytest.raises(ValueError, match="enable_progress_bar=False"):
        train(options, callbacks=[TQDMProgressBar()], **{"trainer.enable_progress_bar": False})
    with pytest.raises(ValueError, match="EarlyStopping monitors 'val_loss', which is never logged"):
        train(options, callbacks=[EarlyStopping("val_loss")])
    with pytest.raises(ValueError, match="EMAWeightAveraging"):
        train(options, callbacks=[StochasticWeightAveraging(0.1)])


def test_an_interrupted_run_is_saved_and_resumes(options: dict[str, Any]) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(options, callbacks=[Counter(interrupt_after=4)], name="again")
    assert Run("again").checkpoints["last"].resolve().name == "step_00000004.ckpt"
    resumed = train(options, name="again", ckpt_path="last")
    whole = train(options, name="whole")
    assert resumed.folder == Path("logs/again/version_0")
    assert np.array_equal(resumed.curve("val/loss"), whole.curve("val/loss"))


def test_a_config_equals_what_the_command_prints(
    options: dict[str, Any], lit_lm: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config.from_dict(options)
    config.to_yaml("config.yaml")
    with pytest.raises(SystemExit):
        lit_lm("fit", "--config=config.yaml", "--print_config")
    assert yaml.safe_load(capsys.readouterr().out) == config.to_dict()
    assert Config.from_yaml("config.yaml") == config
    changed = config.update(seed=1, model={"net": {"d_model": 32}}, **{"data.batch_size": 8})
    expected = config.to_dict()
    expected["seed"], expected["model"]["net"]["d_model"], expected["data"]["batch_size"] = 1, 32, 8
    assert changed.to_dict() == expected
    assert Config.from_dict(changed.to_dict()) == changed


def test_an_unknown_option_is_an_error(options: dict[str, Any]) -> None:
    for call in (lambda: train(options, **{"model.net.d_modle": 3}), lambda: Config.from_dict({"modle": {"seed": 1}})):
        with pytest.raises(ValueError, match="modle"):
            call()
    assert not Path("logs").exists()


def test_the_public_names_are_imported_when_they_are_used() -> None:
    program = (
        "import lit_lm, sys; print(sorted(lit_lm.__all__), 'torch' in sys.modules); lit_lm.Tokenizer; lit_lm.nothing"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == f"{sorted(package.__all__)} False\n"
    assert "module 'lit_lm' has no attribute 'nothing'" in done.stderr
    assert all(callable(getattr(package, name)) for name in package.__all__)
