"""Data commands without torch: what they print, and when they leave the options to the parser of `fit`."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import Command

from lit_lm.cli import data_config, data_options
from lit_lm.cli.config import read_given
from lit_lm.cli.data_options import lines_alone
from lit_lm.cli.recipes import recipes

SMALL = ["--model.net.vocab_size=300", "--model.net.context_length=16"]


def test_data_commands_import_neither_torch_nor_lightning(corpus: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from lit_lm.__main__ import main\n"
        "for command in ('prepare', 'data info', 'data show'): main([*command.split(), *sys.argv[1:]])\n"
        "assert not {'torch', 'lightning', 'torchmetrics', 'datasets', 'matplotlib'} & sys.modules.keys()"
    )
    options = ["--config=quick", f"--data.source={corpus}", f"--data.cache_dir={tmp_path}", *SMALL]
    done = subprocess.run([sys.executable, "-c", code, *options], check=True, timeout=100, capture_output=True)
    assert done.stdout.startswith(b"tokenizer: 300 tokens\n")


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("prepare", []),
        ("data info", ["--data.tokenizer_type=char"]),
        ("data show", ["--step=3", "--seed=5", "--data.batch_size", "2"]),
        ("data show", ["--data.window_order=random", "--data.stride=null", '--data.special_tokens=["<a>"]']),
    ],
)
def test_the_lines_are_those_of_the_parser_of_fit(command: str, options: list[str], corpus: Path, cache: Path) -> None:
    args = ["--config=quick", *SMALL, f"--data.source={corpus}", f"--data.cache_dir={cache}", *options]
    alone = lines_alone(command, args)
    assert alone is not None
    assert list(alone) == list(data_config.lines(command, args, ""))


@pytest.mark.parametrize("command", ["prepare", "data info", "test"])
@pytest.mark.parametrize("given", ["--samples.max_new_tokes=1", "--config={samples: {max_new_tokes: 1}}"])
def test_a_misspelled_option_that_is_not_used_is_reported(command: str, given: str, lit_lm: Command) -> None:
    message = lit_lm(*command.split(), "--config=quick", given, fails=True)
    assert "no option --samples.max_new_tokes; did you mean --samples.max_new_tokens?" in message


@pytest.mark.parametrize("name", [name for name in recipes() if "/" not in name])
def test_the_config_of_a_recipe_is_read_alone_also_with_other_numbers(name: str, tmp_path: Path) -> None:
    config = yaml.safe_load(recipes()[name].read_text())
    config["trainer"]["val_check_interval"] = 7
    del config["model"]["net"]  # may be a path relative to the recipe
    (tmp_path / "changed.yaml").write_text(yaml.safe_dump(config))
    for path in (name, tmp_path / "changed.yaml"):
        parsed = data_options._parsed_alone("prepare", read_given([f"--config={path}", "--data.streaming=false"]).args)
        assert parsed is not None
        assert parsed[0].data.batch_size == config["data"]["batch_size"]


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.max_steps=5"],
        ["--config={name: quick, trainer: {max_steps: many}}"],
        ["--config={name: quick, trainer: {max_step: 5}}"],
        ["--config={name: quick, model: {optimizer: {class_path: os.system}}}"],
        ["--config={name: mine, trainer: {max_steps: 5}}"],
        ["--config={name: quick, step: null}"],
        ["--config={model: {step: null}}"],
        ["--config={model: quick}"],
        ["--model.optimizer=Muon"],
        ["--model.net.d_model=0"],
        ["--data.batch_size=0"],
        ["--data.batch_size=x"],
        ["--data.vocab_size=300"],
        ["--data.streaming"],
        ["--data.source={class_path: mylab.Stories}"],
        ["--ckpt_path=best"],
        ["--seed=-1"],
        ["--step=1"],
        ["--help"],
        ["--print_config"],
        ["unexpected"],
    ],
    ids=lambda options: options[0],
)
def test_other_options_are_left_to_the_parser_of_fit(options: list[str]) -> None:
    assert lines_alone("prepare", options) is None


def test_their_mistakes_are_explained(lit_lm: Command) -> None:
    config = "{name: quick, trainer: {max_step: 5}}"
    printed = lit_lm("prepare", "--config", config, fails=True)
    assert "a config has no option max_step; did you mean trainer.max_steps?" in printed
