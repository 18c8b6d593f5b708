"""The help of the commands that jsonargparse parses."""

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import Command
from lightning.pytorch import Trainer

from lit_lm.cli.base import TRAINER_DEFAULTS
from lit_lm.cli.options import field_docs
from lit_lm.model.config import TransformerConfig

TRAINING = ("--trainer.max_steps", "--trainer.val_check_interval")
TRAINER = ("--trainer.devices", "--trainer.accelerator", "--trainer.precision", "--device")


@pytest.fixture
def help_of(lit_lm: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("COLUMNS", "120")

    def shown(*args: object) -> str:
        with pytest.raises(SystemExit) as stop:
            lit_lm(*args)
        assert not stop.value.code
        return capsys.readouterr().out

    return shown


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_the_help_fits_on_two_screens_and_lists_lit_lms_options(
    command: str, columns: int, help_of: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = help_of(command, "--help")
    assert len(text.splitlines()) <= 100
    entries = [line for line in text.splitlines() if line.startswith("  --") and "--trainer" not in line]
    assert max(map(len, entries)) <= columns
    for option in ("--config", "--ckpt_path", "--name", "--model.net.d_model", "--data.source", "--data.batch_size"):
        assert f"  {option} " in text.replace(",", " ")
    assert "--help.model" in text
    assert "--help.trainer" in text
    assert all(option in text for option in TRAINER)
    assert all((option in text) == (command == "fit") for option in TRAINING)
    assert "--trainer.profiler" not in text
    assert "Width of the residual stream. [512]" in text
    assert "[Muon]" in text


def test_a_group_is_described_in_full(help_of: Command, lit_lm: Command) -> None:
    text = " ".join(help_of("fit", "--help.model").split())
    assert all(f"--model.net.{field.name}" in text for field in fields(TransformerConfig))
    assert f"{field_docs(TransformerConfig)['num_kv_heads']} " in text
    assert "--data.source" not in text
    assert "there is no --help.modle; see --help.checkpoint, " in lit_lm("fit", "--help.modle", fails=True)


def test_the_trainers_options_have_a_help_of_their_own_with_the_true_defaults(help_of: Command) -> None:
    text = help_of("fit", "--help.trainer")
    entries = re.split(r"\n  (?=--trainer)", text)
    listed = [re.match(r"--trainer\.([\w.]+)", entry) for entry in entries[1:]]
    names = {match[1] for match in listed if match is not None and not match[1].endswith(".help")}
    assert names == inspect.signature(Trainer).parameters.keys()
    for name, value in TRAINER_DEFAULTS.items():
        (entry,) = [entry for entry in entries if re.match(rf"--trainer\.{name}\s", entry)]
        assert "Default:" not in entry
        if value is not None:
            assert f"[{str(value).lower() if isinstance(value, bool) else value}]" in " ".join(entry.split())
    for entry in entries:
        if re.search(r"\[.*\]$", entry):
            assert "Default:" not in entry


@pytest.mark.parametrize(
    ("option", "name", "argument"),
    [
        ("--model.optimizer.help", "AdamW", "--model.optimizer.weight_decay"),
        ("--model.optimizer.help", "torch.optim.SGD", "--model.optimizer.momentum"),
        ("--model.schedule.help", "WarmupCosine", "--model.schedule.warmup_steps"),
    ],
)
def test_the_arguments_of_optimizers_and_schedules_are_listed(
    option: str, name: str, argument: str, help_of: Command
) -> None:
    assert argument in help_of("fit", "--config=quick", option, name, "--seed=1").replace("init_args.", "")


def test_predict_prepare_and_data_have_the_same_help(help_of: Command, tmp_path: Path) -> None:
    for command, option in (("predict", "--batch_size"), ("prepare", "--part"), ("data show", "--step")):
        text = help_of(*command.split(), "--help")
        assert text.startswith(f"lit-lm {command} [options]")
        assert f"  {option} " in text
        assert "--trainer.profiler" not in text
