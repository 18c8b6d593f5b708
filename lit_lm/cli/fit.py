"""`lit-lm fit | validate | test | predict`.

A LightningCLI with one seed, one run name, and checkpoints that bring their configuration along: the hyperparameters
in a checkpoint are read as if they were a `--config` file given before all others, so whatever the command line says
explicitly wins.
"""

import hashlib
import json
import logging
import warnings
from argparse import SUPPRESS
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, Namespace, set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.utilities import rank_zero_only

from lit_lm.checkpoint import TRUSTED_CLASSES, Checkpoint, read_checkpoint
from lit_lm.cli.checks import find_problems, sampling_options, with_nearest
from lit_lm.data.datamodule import LMDataModule
from lit_lm.data.sources import absolute, is_remote
from lit_lm.files import sha256
from lit_lm.inference.predict import PredictionWriter
from lit_lm.inference.prompts import Prompt, read_prompts
from lit_lm.inference.sampling import Sampling
from lit_lm.inference.weights import WeightDtype as Weights
from lit_lm.runs import LOGS, find_checkpoint, newest_good_checkpoint, run_folder, versions
from lit_lm.training.checkpointing import Checkpoints, LossSpikes
from lit_lm.training.console import Console, LossCurves, Samples, StoryJudge, Throughput
from lit_lm.training.hardware import best_precision, flush_denormals
from lit_lm.training.module import LitLM

TRAINER_DEFAULTS: dict[str, Any] = {
    "val_check_interval": 200,
    "check_val_every_n_epoch": None,  # a run is counted in steps
    "log_every_n_steps": 10,
    "gradient_clip_val": 1.0,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "use_distributed_sampler": False,  # the data module's order knows its rank
}


class NoProfiler(PassThroughProfiler):
    """Measures nothing, and takes no time to: the Trainer asks it about 60 times a step."""

    NOTHING = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        """A context in which nothing happens."""
        return self.NOTHING


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
    quieten_libraries(args)
    flush_denormals()
    try:
        LitLMCLI(args, description)
    except MisconfigurationException as error:
        raise ValueError(str(error)) from None


def quieten_libraries(args: Sequence[str]) -> None:
    """Leave it to us to say what is worth saying, and to jsonargparse to read docstrings only where help is wanted."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in UNHELPFUL_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    # a field's docstring is its help; to read them takes over a second
    set_parsing_settings(docstring_parse_attribute_docstrings=bool({"-h", "--help"} & set(args)))


class LitLMCLI(LightningCLI):
    """The subcommands over LitLM and LMDataModule."""

    @property
    def continues(self) -> bool:
        """Whether a checkpoint is gone on from, rather than looked at."""
        return bool(self.config.subcommand == "fit")

    def __init__(self, args: Sequence[str], description: str) -> None:
        self.checkpoint: Checkpoint | None = None
        self.ckpt_path: str | None = None
        self.prompts: list[Prompt] = []
        """What predict continues."""
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
        loaders = {"model", "datamodule", "ckpt_path", "weights_only"}
        return {
            "fit": loaders | {"train_dataloaders", "val_dataloaders"},
            "validate": loaders | {"dataloaders", "verbose"},
            "test": loaders | {"dataloaders", "verbose"},
            "predict": loaders | {"dataloaders", "return_predictions"},
        }

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        self._preparing = subcommand
        return super()._prepare_subcommand_parser(klass, subcommand, **kwargs)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The options of our own, one seed in place of Lightning's `seed_everything` among them."""
        fit = self._preparing == "fit"
        checkpoint = "Checkpoint to use: its path, a run's folder, or best or last for the newest run's."
        if fit:
            checkpoint = "Checkpoint to go on from: its path, or last for the newest good one of this run, if any."
        parser.add_argument("--ckpt_path", type=str | None, help=checkpoint)
        parser.add_argument("--seed", type=int, default=0, help="Decides weights, order of data, dropout and samples.")
        if self._preparing == "predict":
            parser.add_argument("--prompt", action="append", default=[], help="Text to continue; repeatable.")
            prompts = "File of prompts: .txt, a line each, or .jsonl, the field prompt; other fields are carried along."
            parser.add_argument("--prompts_file", type=Path | None, help=prompts)
            output = "File to write to, as .jsonl; the same command again goes on after what is in it."
            parser.add_argument("--output", type=Path | None, help=output)
            parser.add_argument("--batch_size", type=int, default=32, help="Prompts that a device continues at once.")
            parser.add_argument("--stop", action="append", default=[], help="Text that ends one; repeatable.")
            parser.add_argument("--weights", type=Weights | None, help="Type to keep the weights in while generating.")
            parser.add_class_arguments(Sampling)
        if fit:
            parser.add_argument("--name", type=str, default="run", help="The run is kept in logs/NAME.")
        else:
            name = "Run in logs/ whose best or last checkpoint is meant; null: the newest one."
            parser.add_argument("--name", type=str | None, help=name)
        # The other commands take a config of fit, and have no use for these.
        hidden: dict[str, Any] = {} if fit else {"help": SUPPRESS}
        allow = {"help": "Go on although seed, data, document mask or context length are no longer the checkpoint's."}
        parser.add_argument("--allow_changes", type=bool, default=False, **(allow | hidden))
        fetch = "Read data from the addresses and the hub data sets that only the checkpoint names."
        parser.add_argument("--allow_fetch", type=bool, default=False, help=fetch)
        if fit:
            parser.add_class_arguments(Checkpoints, "checkpoint")
        else:
            parser.add_argument("--checkpoint", type=dict | None, help=SUPPRESS)

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

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line behind the configuration that the checkpoint brings along."""
        command, *rest = args
        self.config = self._parsed(args)
        config = self.config[command]
        path = config.ckpt_path
        if path == "last" and self.continues:
            path = self._last_checkpoint(config.name)
        elif path is None and command != "fit":
            raise ValueError(f"{command} needs --ckpt_path, the path of a checkpoint")
        elif path is not None and not (self.continues and Path(path).is_file()):
            # a config of fit brings a name, which is no mistake beside a path
            meant = path in ("best", "last") or any(option.partition("=")[0] == "--name" for option in rest)
            path = str(find_checkpoint(path, config.name if meant and not self.continues else None))
        if path is not None:
            self.checkpoint = read_checkpoint(Path(path))
            own = self.config[command]
            named = {part: own.model[part].class_path for part in TRUSTED_CLASSES if command == "fit"}
            defaults = {part: self._parser(command).get_default(f"model.{part}")["class_path"] for part in named}
            named = {part: path for part, path in named.items() if path != defaults[part]}
            brought = json.dumps(self.checkpoint.config(training=command == "fit", named=named))
            self.config = self._parsed([command, "--config", brought, *rest])
            if not self.config[command].allow_fetch:
                _check_addresses(own, self.config[command])
        self.ckpt_path = path
        self.config[command].ckpt_path = None  # the config that is kept is not tied to this moment

    def _parsed(self, args: Sequence[str]) -> Namespace:
        try:
            return self.parser.parse_args(list(args), with_meta=False)
        except ArgumentError as error:
            known = [name for action in self._parser(args[0])._actions for name in action.option_strings]
            raise ValueError(with_nearest(str(error), known)) from None

    def _last_checkpoint(self, name: str) -> str | None:
        """The newest good checkpoint of a run, which then goes on in the same folder."""
        for folder in versions(LOGS / name):
            checkpoint, problems = newest_good_checkpoint(folder / "checkpoints")
            for problem in problems:
                _say(f"{problem}; it is passed over")
            if checkpoint is not None:
                self.version = int(folder.name.removeprefix("version_"))
                _say(f"going on from {checkpoint.path}")
                return str(checkpoint.path)
            _say(f"{folder} has no good checkpoint")
        _say(f"there is no checkpoint of {name} yet: this is a new run")
        return None

    def _parse_ckpt_path(self) -> None:
        """Nothing is left to do: `parse_arguments` did it, under the explicit options rather than over them."""

    def _set_seed(self) -> None:
        seed_everything(self._get(self.config, "seed"), workers=True, verbose=False)

    def before_instantiate_classes(self) -> None:
        """Report all that is wrong with the configuration at once."""
        self._check(str(self.subcommand))

    def _check(self, command: str) -> None:
        config = self.config[self.subcommand]
        sources = config.data.source
        if isinstance(sources, dict):
            config.data.source = {absolute(name): weight for name, weight in sources.items()}
            if len(config.data.source) < len(sources):
                raise ValueError(f"data.source names one source twice: {', '.join(sources)}")
        else:
            config.data.source = absolute(sources)
        if config.data.val_source is not None:
            config.data.val_source = absolute(config.data.val_source)
        if config.data.tokenizer is not None:
            config.data.tokenizer = str(Path(config.data.tokenizer).expanduser().absolute())
        if problems := find_problems(command, config.as_dict(), self.checkpoint):
            raise ValueError("\n".join(problems))
        if self.subcommand == "predict":
            self.prompts = _prompts(config.prompt, config.prompts_file)

    def after_instantiate_classes(self) -> None:
        """Hand over what the checkpoint and the command line have for the data module and for predict."""
        config = self.config[self.subcommand]
        if self.checkpoint is not None and config.data.tokenizer == self.checkpoint.data["tokenizer"]:
            self.datamodule.tokenizer = self.checkpoint.tokenizer
        if self.checkpoint is not None and self.subcommand in ("fit", "test") and not config.allow_changes:
            self.datamodule.expected_digests = self.checkpoint.digests
        if self.subcommand == "predict":
            self.model.sampling, self.model.weights = Sampling(**sampling_options(config)), config.weights
            self.model.stop = tuple(config.stop)
            self.datamodule.prompts = self.prompts
            self.datamodule.prompt_batch_size = config.batch_size
            self.datamodule.prompt_room = None if config.sliding_window else config.max_new_tokens or 1

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer with lit-lm's logger and callbacks."""
        config, built = self.config[self.subcommand], self.config_init[self.subcommand]
        if config.trainer.profiler is None:
            kwargs["profiler"] = NoProfiler()
        if config.trainer.precision is None and self.subcommand != "predict":
            kwargs["precision"] = best_precision(str(config.trainer.accelerator), config.model.net.d_model)
        if self.subcommand != "fit":
            self.save_config_callback = None  # only a run has a folder to keep its config in
        callbacks: list[Callback] = []
        if config.trainer.enable_progress_bar is not False:
            callbacks.append(Console())
        if self.subcommand == "fit":
            beside = config.trainer.logger
            kwargs["logger"] = [self._logger(config.name)]
            if beside not in (None, True):
                kwargs["logger"] += built.trainer.logger if isinstance(beside, list) else [built.trainer.logger]
            callbacks += [LossSpikes(), Samples(), LossCurves(), Throughput()]
            if config.trainer.enable_checkpointing is not False:
                callbacks.append(built.checkpoint)
        else:
            kwargs["logger"] = False
            if self.subcommand == "test" and self.checkpoint is not None:
                callbacks.append(StoryJudge(run_folder(Path(str(self.ckpt_path))), self.checkpoint.step))
            if self.subcommand == "predict":
                callbacks.append(PredictionWriter(config.output, config.stop, self._made_from()))
        extra = built.trainer.get("callbacks") or []
        extra = extra if isinstance(extra, list) else [extra]
        return super().instantiate_trainer(callbacks=[*extra, *callbacks], **kwargs)

    def _made_from(self) -> dict[str, Any]:
        """What decides predict's continuations."""
        config = self.config["predict"]
        prompts = [[prompt.text, prompt.fields] for prompt in self.prompts]
        names = ("seed", "stop", "weights")
        return {
            "checkpoint": sha256(Path(str(self.ckpt_path))),
            "prompts": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
            "trainer.precision": config.trainer.precision,
            **{name: config[name] for name in names},
            **sampling_options(config),
        }

    def _logger(self, name: str) -> TensorBoardLogger:
        going_on: dict[str, Any] = {}
        if self.version is not None and self.checkpoint is not None:  # what was logged of later steps comes again
            going_on = {"version": self.version, "purge_step": self.checkpoint.step + 1}
        return TensorBoardLogger(LOGS, name=name, default_hp_metric=False, **going_on)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand == "predict":
            kwargs["return_predictions"] = False  # they are written as they come
        return kwargs | {"ckpt_path": self.ckpt_path, "weights_only": True}


def _check_addresses(own: Namespace, config: Namespace) -> None:
    """Refuse to fetch from where the checkpoint alone says.

    Raises:
        ValueError: naming the addresses.
    """
    named = set(_places(own))
    if fetched := [place for place in _places(config) if is_remote(place) and place not in named]:
        raise ValueError(
            f"the checkpoint's data is at {', '.join(fetched)}; say --allow_fetch true if it may be fetched from "
            "there, or give another --data.source"
        )


def _places(config: Namespace) -> list[str]:
    """The sources that a configuration names."""
    source, val_source = config.data.source, config.data.val_source
    return [*(source if isinstance(source, dict) else [source]), *([] if val_source is None else [val_source])]


def _prompts(prompts: list[str], file: Path | None) -> list[Prompt]:
    given = [Prompt(text, f"--prompt {text[:40]!r}") for text in prompts]
    if file is not None:
        given += read_prompts(file)
    if not given:
        raise ValueError('there is nothing to continue; give --prompt "..." or --prompts_file FILE')
    return given


@rank_zero_only
def _say(line: str) -> None:
    print(line, flush=True)
