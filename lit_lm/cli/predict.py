"""`lit-lm predict`: continue many prompts in batches, on all devices."""

import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, Namespace  # type: ignore[attr-defined]
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from lit_lm.checkpoint import read_checkpoint
from lit_lm.cli.base import parse, quieten_libraries
from lit_lm.cli.checkpoints import BY_DEFAULT, CKPT_PATH_HELP, NAME_HELP, chosen_checkpoint
from lit_lm.cli.checks import trainer_problems
from lit_lm.cli.config import read_given
from lit_lm.cli.help import help_text, help_topic
from lit_lm.files import digest, expand_home, sha256
from lit_lm.inference.predict import PredictModule
from lit_lm.inference.predictions import PredictionWriter
from lit_lm.inference.prompts import Prompt, read_prompts
from lit_lm.inference.sampling import SamplingConfig
from lit_lm.training.hardware import flush_denormals


def run(args: Sequence[str], description: str) -> None:
    """Run `lit-lm predict`.

    Raises:
        ValueError, OSError: if the arguments, or the files they name, are invalid.
    """
    quieten_libraries(args)
    flush_denormals()
    parser = make_parser(description)
    if (topic := help_topic(args)) is not None:
        print(help_text(parser, "predict", topic), end="")
        sys.exit()
    options = parse(parser, read_given(args[1:]).args, parser)
    sampling = _check(options)
    prompts = _prompts(options.prompt, options.prompt_file)
    checkpoint = read_checkpoint(chosen_checkpoint(options.ckpt_path, options.name))
    module = PredictModule(
        checkpoint.transformer(),
        checkpoint.require_tokenizer(),
        prompts,
        sampling,
        weight_dtype=options.weight_dtype,
        stop=options.stop,
        batch_size=options.batch_size,
        seed=options.seed,
    )
    output = None if options.output is None else expand_home(options.output)
    writer = PredictionWriter(output, _made_from(options, sampling, checkpoint.path, prompts))
    try:
        trainer = parser.instantiate_classes(options).trainer
        callbacks = trainer.pop("callbacks") or []
        callbacks = [*(callbacks if isinstance(callbacks, list) else [callbacks]), writer]
        Trainer(**{**trainer, "callbacks": callbacks, "logger": False}).predict(module, return_predictions=False)
    except (MisconfigurationException, ModuleNotFoundError) as error:  # of a Trainer that cannot be built
        raise ValueError(str(error)) from None


def make_parser(description: str) -> LightningArgumentParser:
    """The parser of the command; its help starts with `description`."""
    parser = LightningArgumentParser(exit_on_error=False, usage="lit-lm predict [options]", description=description)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="Path of a YAML file with options.")
    parser.add_argument("--ckpt_path", type=str | None, help=CKPT_PATH_HELP + BY_DEFAULT)
    parser.add_argument("--name", type=str | None, help=NAME_HELP)
    parser.add_argument("--prompt", action="append", default=[], help="Text to continue; repeatable.")
    file = "File of prompts: .txt with a prompt per line, or .jsonl with a field prompt; other fields are copied."
    parser.add_argument("--prompt_file", type=Path | None, help=file)
    parser.add_argument("--output", type=Path | None, help="A .jsonl file to write, or to resume; null: print.")
    parser.add_argument("--stop", action="append", default=[], help="Stop string; repeatable.")
    parser.add_class_arguments(PredictModule, skip={"net", "tokenizer", "prompts", "sampling", "stop"})
    parser.add_class_arguments(SamplingConfig)
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.set_defaults({"trainer.enable_progress_bar": False, "trainer.use_distributed_sampler": False})
    return parser


def _check(options: Namespace) -> SamplingConfig:
    """Check the options and return the sampling config.

    Raises:
        ValueError: listing all problems, a line each.
    """
    problems, sampling = trainer_problems(options.trainer), SamplingConfig()
    try:
        sampling = SamplingConfig(**{field.name: options[field.name] for field in fields(SamplingConfig)})
    except ValueError as error:
        problems.append(str(error))
    for name in ("prompt", "stop"):
        if not isinstance(options[name], list) or not all(isinstance(text, str) for text in options[name]):
            problems.append(f"{name} is {options[name]!r}; in a config, it must be a list of texts")
        elif name == "stop" and "" in options.stop:
            problems.append("--stop must not be an empty string")
    if options.batch_size < 1:
        problems.append(f"batch_size is {options.batch_size}; it must be at least 1")
    if problems:
        raise ValueError("\n".join(problems))
    return sampling


def _prompts(prompts: list[str], file: Path | None) -> list[Prompt]:
    given = [Prompt(text, f"--prompt {text[:40]!r}") for text in prompts]
    if file is not None:
        given += read_prompts(file)
    if not given:
        raise ValueError('no prompts; pass --prompt "..." or --prompt_file FILE')
    return given


def _made_from(options: Namespace, sampling: SamplingConfig, path: Path, prompts: list[Prompt]) -> dict[str, Any]:
    """Everything that determines the continuations."""
    content = [[prompt.text, prompt.fields] for prompt in prompts]
    return {
        "checkpoint": sha256(path),
        "prompts": digest(json.dumps(content)),
        "trainer.precision": options.trainer.precision,
        **{name: options[name] for name in ("seed", "stop", "weight_dtype")},
        **vars(sampling),
    }
