"""LightningCLI with one seed, one run name, and checkpoints that bring their configuration along.

The hyperparameters in a checkpoint are read as if they were a `--config` file given before all others, so whatever the
command line says explicitly wins.
"""

import argparse
import difflib
import inspect
import json
import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, Namespace, set_parsing_settings
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from lit_lm.callbacks import Console, LossCurves, PredictionWriter, Samples, Throughput
from lit_lm.checkpoint import Checkpoint, newest_good_checkpoint, read_checkpoint
from lit_lm.data.datamodule import LMDataModule
from lit_lm.data.sources import absolute
from lit_lm.fault_tolerance import Checkpoints, LossSpikes
from lit_lm.generation import Sampling
from lit_lm.model import TransformerConfig
from lit_lm.module import LitLM

LOGS = Path("logs")

FIXED = (
    "seed",
    "model.net",
    "data.source",
    "data.val_source",
    "data.val_fraction",
    "data.tokenizer",
    "data.batch_size",
    "data.stride",
    "data.text_field",
    "data.bin_dtype",
)
"""What decides which tokens a step sees, and so cannot change in the middle of a run unnoticed."""

TRAINER_DEFAULTS: dict[str, Any] = {
    "val_check_interval": 200,
    "check_val_every_n_epoch": None,  # a run is counted in steps
    "log_every_n_steps": 10,
    "gradient_clip_val": 1.0,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "use_distributed_sampler": False,  # the data module's order knows its rank
}

UNHELPFUL_WARNINGS = (
    ".*does not have many workers",  # windows are read from a memory map: there is no work for a worker
    ".*callbacks used to create the checkpoint need to be provided",  # only `fit` continues them
    ".*smaller than the logging interval",  # the first step is always logged
    ".*your dataloader is not resumable",  # its order is a function of the step
    ".*sync_dist=True",  # the metric is over all devices already
    ".*Couldn't infer the batch indices",
    ".*isinstance.treespec, LeafSpec.* is deprecated",  # Lightning's own use of torch
)


def run(args: Sequence[str], description: str) -> None:
    """Run a command, whose help begins with `description`.

    Raises:
        ValueError, OSError: for anything that is wrong with the arguments or the files they name.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):  # what is worth saying, Console says
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in UNHELPFUL_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    if args[0] == "data":
        _data(args[1:])
    else:
        # A field's docstring is its help; to read them takes over a second.
        set_parsing_settings(docstring_parse_attribute_docstrings=bool({"-h", "--help"} & set(args)))
        LitLMCLI(args, description)


def _data(args: Sequence[str]) -> None:
    """`lit-lm data show`."""
    parser = argparse.ArgumentParser("lit-lm data", description="Look at what a run was given to read.")
    show = parser.add_subparsers(required=True).add_parser("show", help="print the windows of a step")
    show.add_argument("--ckpt_path", type=Path, required=True, help="a checkpoint of the run")
    show.add_argument("--step", type=int, required=True, help="number of the step, from 1")
    options = parser.parse_args(args)
    checkpoint = read_checkpoint(options.ckpt_path)
    data = LMDataModule(**checkpoint.data)
    data.tokenizer = checkpoint.tokenizer
    data.setup(TrainerFn.FITTING)
    for line in data.show(options.step):
        print(line)


class LitLMCLI(LightningCLI):
    """The subcommands over LitLM and LMDataModule."""

    def __init__(self, args: Sequence[str], description: str) -> None:
        self.checkpoint: Checkpoint | None = None
        self.version: int | None = None
        """Number of the run's folder, where a run goes on."""
        super().__init__(
            LitLM,
            LMDataModule,
            trainer_defaults=TRAINER_DEFAULTS,
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,
            parser_kwargs={"exit_on_error": False}
            | {
                name: {"exit_on_error": False, "usage": f"lit-lm {name} [options]", "description": description}
                for name in self.subcommands()
            },
            args=list(args),
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The subcommands, with the arguments of the Trainer's methods that are not options."""
        loaders = {"model", "datamodule", "weights_only"}
        return {
            "fit": loaders | {"train_dataloaders", "val_dataloaders"},
            "validate": loaders | {"dataloaders", "verbose"},
            "test": loaders | {"dataloaders", "verbose"},
            "predict": loaders | {"dataloaders", "return_predictions"},
        }

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """One seed in place of Lightning's `seed_everything`."""
        parser.add_argument("--seed", type=int, default=0, help="Decides weights, order of data, dropout and samples.")

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Model and data before the Trainer, whose many options would hide them in the help."""
        parser.add_lightning_class_args(LitLM, "model")
        parser.add_lightning_class_args(LMDataModule, "data")
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({f"trainer.{name}": value for name, value in self.trainer_defaults.items()})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What model and data have in common is said once."""
        parser.link_arguments("seed", "model.seed")
        parser.link_arguments("seed", "data.seed")
        parser.link_arguments("model.net.context_length", "data.context_length")
        parser.link_arguments("model.net.vocab_size", "data.vocab_size")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "fit":
            parser.add_lightning_class_args(Checkpoints, "checkpoint")
            parser.add_argument("--name", type=str, default="run", help="The run is kept in logs/NAME/version_N.")
            parser.add_argument(
                "--allow_changes", type=bool, default=False, help=f"Go on although {', '.join(FIXED)} differ."
            )
        if subcommand == "predict":
            parser.add_argument("--prompt", action="append", default=[], help="Text to continue; repeatable.")
            parser.add_argument("--prompts_file", type=Path | None, help="Text file with a prompt a line.")
            parser.add_argument("--output", type=Path | None, help="File to write to, as .jsonl.")
            parser.add_class_arguments(Sampling)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line behind the configuration that the checkpoint brings along."""
        command, *rest = args
        path = _option(rest, "--ckpt_path")
        if command == "fit" and path == "last":
            path = self._last_checkpoint(self._parsed(args)["fit"].name)
            rest = [*rest, f"--ckpt_path={path or 'null'}"]  # the later one counts
        if path is not None:
            self.checkpoint = read_checkpoint(Path(path))
            rest = ["--config", json.dumps(self.checkpoint.config(training=command == "fit")), *rest]
        elif command != "fit" and not {"-h", "--help", "--print_config"} & set(rest):
            raise ValueError(f"{command} needs --ckpt_path, the path of a checkpoint")
        self.config = self._parsed([command, *rest])

    def _parsed(self, args: Sequence[str]) -> Namespace:
        try:
            return self.parser.parse_args(list(args))
        except ArgumentError as error:
            known = [name for action in self._parser(args[0])._actions for name in action.option_strings]
            raise ValueError(_with_nearest(str(error), known)) from None

    def _last_checkpoint(self, name: str) -> str | None:
        """The newest good checkpoint of a run, which then goes on in the same folder."""
        versions = {int(path.name.removeprefix("version_")): path for path in (LOGS / name).glob("version_*")}
        for version in sorted(versions, reverse=True):
            path, problems = newest_good_checkpoint(versions[version] / "checkpoints")
            for problem in problems:
                print(f"{problem}; it is passed over", flush=True)
            if path is not None:
                self.version = version
                return str(path)
        print(f"there is no checkpoint of {name} yet: this is a new run", flush=True)
        return None

    def _parse_ckpt_path(self) -> None:
        """Nothing is left to do: `parse_arguments` did it, under the explicit options rather than over them."""

    def _set_seed(self) -> None:
        seed_everything(self._get(self.config, "seed"), workers=True, verbose=False)

    def before_instantiate_classes(self) -> None:
        """Report all that is wrong with the configuration at once."""
        config = self.config[self.subcommand]
        config.data.source = absolute(config.data.source)
        if config.data.val_source is not None:
            config.data.val_source = absolute(config.data.val_source)
        problems = []
        if self.subcommand == "fit" and config.trainer.max_steps < 0 and config.trainer.max_epochs is None:
            problems.append("the run has no end: set trainer.max_steps or trainer.max_epochs")
        if self.subcommand == "fit" and self.checkpoint is not None and not config.allow_changes:
            problems += _changes(self.checkpoint.config(training=True), config)
        checked = [(TransformerConfig, config.model.net.as_dict()), (LMDataModule, config.data.as_dict())]
        if self.subcommand == "predict":
            checked.append((Sampling, _sampling(config)))
        for kind, values in checked:
            try:
                kind(**values)
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError("\n".join(problems))

    def after_instantiate_classes(self) -> None:
        """Hand over what the checkpoint and the command line have for predict."""
        if self.checkpoint is not None:
            self.datamodule.tokenizer = self.checkpoint.tokenizer
        if self.subcommand == "predict":
            config = self.config[self.subcommand]
            self.model.sampling = Sampling(**_sampling(config))
            self.datamodule.prompts = _prompts(config.prompt, config.prompts_file)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer with lit-lm's logger and callbacks."""
        config = self.config[self.subcommand]
        callbacks: list[Callback] = [Console()]
        if self.subcommand == "fit":
            if config.trainer.logger is None:
                kwargs["logger"] = self._logger(config.name)
            callbacks += [Throughput(), LossSpikes(), Samples(), LossCurves()]
        else:
            kwargs["logger"] = False
            if self.subcommand == "predict":
                callbacks.append(PredictionWriter(config.output))
        extra = self.config_init[self.subcommand].trainer.get("callbacks") or []
        return super().instantiate_trainer(callbacks=[*extra, *callbacks], **kwargs)

    def _logger(self, name: str) -> TensorBoardLogger:
        going_on: dict[str, Any] = {}
        if self.version is not None and self.checkpoint is not None:  # what was logged of later steps comes again
            going_on = {"version": self.version, "purge_step": self.checkpoint.step + 1}
        return TensorBoardLogger(LOGS, name=name, default_hp_metric=False, **going_on)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return super()._prepare_subcommand_kwargs(subcommand) | {"weights_only": True}


def _with_nearest(message: str, options: Sequence[str]) -> str:
    """A parser's message about an unknown name, with the name that was probably meant."""
    if match := re.search(r"unrecognized arguments: --(\S+)|does not accept option '(.+)'", message):
        name = (match[1] or match[2]).partition("=")[0]
        known = [option.removeprefix("--") for option in options]
    elif match := re.search(r"Option '(\w+)' is not accepted.*class_path='([\w.]+)'", message):
        name = match[1]
        module, _, kind = match[2].rpartition(".")
        known = list(inspect.signature(getattr(import_module(module), kind)).parameters)
        message = f"{match[2]} has no parameter {name}"
    else:
        return message
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"{message}; did you mean {nearest[0]}?" if nearest else message


def _option(args: Sequence[str], name: str) -> str | None:
    """The value of an option in unparsed arguments."""
    for place, arg in enumerate(args):
        if arg == name and place + 1 < len(args):
            return args[place + 1]
        if arg.startswith(f"{name}="):
            return arg.partition("=")[2]
    return None


def _changes(saved: Mapping[str, Any], config: Namespace) -> list[str]:
    """What differs between the config of a checkpoint and the one that it shall go on with."""
    now = config.as_dict()
    problems = []
    for name in FIXED:
        group, _, key = name.partition(".")
        before, after = (values[group][key] if key else values[group] for values in (saved, now))
        if before != after:
            problems.append(f"{name} was {before} and is {after}")
    if problems:
        problems.append("these cannot change in the middle of a run; leave them out, or say --allow_changes true")
    return problems


def _sampling(config: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: config[field.name] for field in fields(Sampling)}


def _prompts(prompts: list[str], file: Path | None) -> list[str]:
    if file is not None:
        try:
            prompts = prompts + file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8: byte {error.start}") from None
    if not prompts:
        raise ValueError('there is nothing to continue; give --prompt "..." or --prompts_file FILE')
    return prompts
