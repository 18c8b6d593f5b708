"""What the commands over a run's configuration share: their options, and the configuration that a checkpoint brings.

The hyperparameters in a checkpoint are read as if they were a config file given before all others, so whatever the
command line or a config of the user's says wins.
"""

import json
import logging
import sys
import warnings
from argparse import SUPPRESS
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentError, Namespace, set_parsing_settings
from lightning.pytorch import seed_everything
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

from lit_lm.checkpoint import TRUSTED_CLASSES, Checkpoint, read_checkpoint
from lit_lm.cli.checks import find_problems, with_nearest
from lit_lm.cli.config import Given, read_given
from lit_lm.data.datamodule import LMDataModule
from lit_lm.data.sources import absolute, is_remote
from lit_lm.runs import find_checkpoint
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

UNHELPFUL_WARNINGS = (
    ".*does not have many workers",  # windows are read from a memory map: there is no work for a worker
    ".*callbacks used to create the checkpoint need to be provided",  # only `fit` resumes them
    ".*smaller than the logging interval",  # the first step is always logged
    ".*your dataloader is not resumable",  # its order is a function of the step
    ".*sync_dist=True",  # the metric is over all devices already
    ".*Couldn't infer the batch indices",
    ".*isinstance.treespec, LeafSpec.* is deprecated",  # Lightning's own use of torch
)


T = TypeVar("T")

CKPT_PATH_HELP = "Checkpoint to use: its path, a run's folder, or best or last for the newest run's."
NAME_HELP = "Run in logs/ whose best or last checkpoint to use; null: the newest one."


def quieten_libraries(args: Sequence[str]) -> None:
    """Silence what is not worth reading, and have jsonargparse read docstrings only for the help."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in UNHELPFUL_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    # a field's docstring is its help; to read them takes over a second
    set_parsing_settings(docstring_parse_attribute_docstrings=bool({"-h", "--help"} & set(args)))


@rank_zero_only
def report(line: str) -> None:
    """Print a line, on the first process alone."""
    print(line, flush=True)


class BaseCLI(LightningCLI):
    """Options over a model and a data module, behind those that a checkpoint brings.

    A subclass adds options and says what it does.
    """

    trains = False
    """Whether optimizer and schedule are wanted."""

    def __init__(self, command: str, args: Sequence[str], description: str, *, run: bool) -> None:
        """
        Args:
            command: Name of the command, as the user types it.
            args: Its arguments.
            description: First paragraph of its help.
            run: Whether it is a method of the Trainer.
        """
        self.command = command
        if str(Path.cwd()) not in sys.path:  # for classes of the user's own; after all else: a file replaces no library
            sys.path.append(str(Path.cwd()))
        self.given: Given = read_given(args)
        self.checkpoint: Checkpoint | None = None
        """The checkpoint that the command starts from, already read."""
        kwargs = {"exit_on_error": False, "usage": f"lit-lm {command} [options]", "description": description}
        self.own_model_class = _own_class(self.given.args, "model_class", LitLM)
        self.own_data_class = _own_class(self.given.args, "data_class", LMDataModule)
        super().__init__(
            self.own_model_class,
            self.own_data_class,
            trainer_defaults=TRAINER_DEFAULTS,
            save_config_callback=None,  # the run's folder comes with its config
            auto_configure_optimizers=False,
            parser_kwargs={"exit_on_error": False, command: kwargs} if run else kwargs,
            args=[command, *self.given.args] if run else self.given.args,
            run=run,
        )

    @property
    def options(self) -> Namespace:
        """The parsed options of the command."""
        options: Namespace = self.config[self.command] if "subcommand" in self.config else self.config
        return options

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The options that are neither the model's, the data module's nor the Trainer's."""
        self.own_parser = parser
        self.add_own_arguments(parser)
        parser.add_argument("--seed", type=int, default=0, help="Decides weights, order of data, dropout and samples.")
        fetch = "Read data from the addresses and hub data sets that only the checkpoint names."
        parser.add_argument("--allow_fetch", type=bool, default=False, help=fetch)
        for name, kind in (("model_class", LitLM), ("data_class", LMDataModule)):
            text = f"Class of your own that extends {kind.__name__}; also --{name.removesuffix('_class')} NAME."
            parser.add_argument(f"--{name}", type=str | None, help=text)

    def add_own_arguments(self, parser: LightningArgumentParser) -> None:
        """The options of one command: to be extended."""
        parser.add_argument("--ckpt_path", type=str | None, help=CKPT_PATH_HELP)
        parser.add_argument("--name", type=str | None, help=NAME_HELP)

    def accept(self, parser: LightningArgumentParser, **types: Any) -> None:
        """Take options of `fit` that a config of fit may have, and leave them unused."""
        for name, kind in types.items():
            parser.add_argument(f"--{name}", type=kind, default=None, help=SUPPRESS)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Model and data before the Trainer, whose many options would hide them in the help."""
        parser.add_lightning_class_args(self.own_model_class, "model")
        parser.add_lightning_class_args(self.own_data_class, "data")
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({f"trainer.{name}": value for name, value in self.trainer_defaults.items()})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What model and data have in common is given once."""
        parser.link_arguments("seed", "model.seed")
        parser.link_arguments("seed", "data.seed")
        parser.link_arguments("model.net.context_length", "data.context_length")
        parser.link_arguments("model.net.vocab_size", "data.vocab_size")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse what the user gave behind the configuration that the checkpoint brings along."""
        command = args[: len(args) - len(self.given.args)]
        self.config = self._parsed(
            [*command, *(arg for arg in self.given.args if not arg.startswith("--print_config"))]
        )
        own, self.checkpoint = self.options, self.find_checkpoint()
        if self.checkpoint is not None:
            brought = json.dumps(self.checkpoint.config(training=self.trains, named=self._named_classes(own)))
            self.config = self._parsed([*command, f"--config={brought}", *self.given.args])
            if not self.options.allow_fetch:
                _check_addresses(own, self.options)
        elif any(arg.startswith("--print_config") for arg in self.given.args):
            self._parsed(args)
        self.options.ckpt_path = None  # the config that is kept is not tied to this moment

    def find_checkpoint(self) -> Checkpoint | None:
        """The checkpoint that the options name."""
        path, name = self.options.ckpt_path, self.options.name
        if path is None:
            return None
        # a config of fit brings a name, which is no mistake beside a path
        meant = path in ("best", "last") or any(arg.startswith("--name=") or arg == "--name" for arg in self.given.args)
        return read_checkpoint(find_checkpoint(path, name if meant else None))

    def before_instantiate_classes(self) -> None:
        """Report everything that is wrong with the configuration at once."""
        options = self.options
        sources = options.data.source
        if isinstance(sources, dict) and "class_path" not in sources:
            options.data.source = {absolute(name): weight for name, weight in sources.items()}
            if len(options.data.source) < len(sources):
                raise ValueError(f"data.source names one source twice: {', '.join(sources)}")
        elif isinstance(sources, str):
            options.data.source = absolute(sources)
        if options.data.val_source is not None:
            options.data.val_source = absolute(options.data.val_source)
        if options.data.tokenizer is not None:
            options.data.tokenizer = str(Path(options.data.tokenizer).expanduser().absolute())
        if problems := find_problems(self.command, options.as_dict(), self.checkpoint):
            raise ValueError("\n".join(problems))

    def hand_over_tokenizer(self) -> None:
        """Have the data module use the checkpoint's tokenizer, unless the user names another."""
        if self.checkpoint is not None and self.options.data.tokenizer == self.checkpoint.data.get("tokenizer"):
            self.datamodule.tokenizer = self.checkpoint.tokenizer

    def _set_seed(self) -> None:
        seed_everything(self.options.seed, workers=True, verbose=False)

    def _parsed(self, args: Sequence[str]) -> Namespace:
        try:
            return self.parser.parse_args(list(args), with_meta=False)
        except ArgumentError as error:
            known = [f"--{name}" for name in self.own_parser.get_defaults().keys()]  # noqa: SIM118
            raise ValueError(with_nearest(str(error), known)) from None

    def _named_classes(self, own: Namespace) -> dict[str, str]:
        """The classes that the user named for optimizer and schedule, and as a source of documents."""
        named = {part: own.model[part].class_path for part in TRUSTED_CLASSES if f"model.{part}" in self.given.names}
        if isinstance(own.data.source, dict) and "class_path" in own.data.source:
            named["source"] = own.data.source["class_path"]
        return named


def _own_class(args: Sequence[str], option: str, base: type[T]) -> type[T]:
    """The class that an option names, or the base.

    Raises:
        ValueError: if there is no such class, or it does not extend the base.
    """
    given = None
    for arg in args:
        name, _, value = arg.partition("=")
        if name == "--config":
            given = json.loads(value).get(option, given)
        elif name == f"--{option}":
            given = value
    if given is None:
        return base
    module, _, name = str(given).rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{option} is {given}, which cannot be imported: {error}") from None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{option} is {given}; it must be a class that extends {base.__name__}")
    return found


def _check_addresses(own: Namespace, options: Namespace) -> None:
    """Refuse to fetch from where the checkpoint alone says.

    Raises:
        ValueError: naming the addresses.
    """
    named = set(_places(own))
    if fetched := [place for place in _places(options) if is_remote(place) and place not in named]:
        raise ValueError(
            f"the checkpoint's data is at {', '.join(fetched)}; pass --allow_fetch true to fetch it from there, or "
            "another --data.source"
        )


def _places(options: Namespace) -> list[str]:
    """The sources that a configuration names."""
    source, val_source = options.data.source, options.data.val_source
    names = list(source) if isinstance(source, dict) and "class_path" not in source else [source]
    return [name for name in (*names, val_source) if isinstance(name, str)]
