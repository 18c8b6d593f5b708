"""Base class of the commands that take a run's config: shared options, and the config stored in a checkpoint.

The config of a checkpoint is parsed like a config file that precedes all others, so the user's configs and options
override it.
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

from jsonargparse import ArgumentError, Namespace, _typehints, set_parsing_settings
from lightning.pytorch import seed_everything
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_lm.checkpoint import TRUSTED_CLASSES, Checkpoint, read_checkpoint
from lit_lm.cli.checkpoints import BY_DEFAULT, CKPT_PATH_HELP, NAME_HELP, chosen_checkpoint
from lit_lm.cli.checks import find_problems
from lit_lm.cli.config import Given, make_data_absolute, read_given
from lit_lm.cli.help import help_text, help_topic
from lit_lm.cli.known_options import known_options
from lit_lm.cli.mistakes import explained, unknown_option
from lit_lm.cli.options import bool_options, with_values
from lit_lm.cli.trust import check_addresses, check_texts
from lit_lm.data.datamodule import LMDataModule
from lit_lm.training.module import LitLM

TRAINER_DEFAULTS: dict[str, Any] = {
    "val_check_interval": 200,
    "check_val_every_n_epoch": None,  # runs are measured in steps
    "log_every_n_steps": 10,
    "gradient_clip_val": 1.0,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "use_distributed_sampler": False,  # the data module divides batches among ranks itself
}

UNHELPFUL_WARNINGS = (
    ".*does not have many workers",  # windows are read from a memory map, which needs no workers
    ".*callbacks used to create the checkpoint need to be provided",  # only `fit` restores them
    ".*smaller than the logging interval",  # the first step is always logged
    ".*your dataloader is not resumable",  # its order is a function of the step
    ".*sync_dist=True",  # the metric is already reduced over all devices
    ".*Couldn't infer the batch indices",
    ".*isinstance.treespec, LeafSpec.* is deprecated",  # raised by Lightning's use of torch
)


T = TypeVar("T")


def quieten_libraries(args: Sequence[str]) -> None:
    """Silence unhelpful logs and warnings, and let jsonargparse parse docstrings only for --help."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("callbacks", "profilers"):  # they log what the user asked for
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.INFO)
    for message in UNHELPFUL_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    # the docstring of a field is its help; parsing them takes over a second
    helps = any(arg == "-h" or arg.startswith("--help") or ".help" in arg for arg in args)
    set_parsing_settings(docstring_parse_attribute_docstrings=helps)


def _reset_init_args(_: Any, previous: Any, value: Any) -> None:
    """Drop the arguments of the previous class when an option or a config names another one.

    jsonargparse would keep those that the new class has too: AdamW would train with Muon's learning rate.
    """
    if previous and "init_args" in previous and previous["class_path"] != value["class_path"]:
        previous["init_args"] = Namespace()  # type: ignore[no-untyped-call]


_typehints.discard_init_args_on_class_path_change = _reset_init_args


@rank_zero_only
def report(line: str) -> None:
    """Print a line on the first process only."""
    print(line, flush=True)


class BaseCLI(LightningCLI):
    """Command with the options of a model and a data module, on top of the config of a checkpoint if there is one."""

    trains = False
    """Whether the command needs optimizer and schedule."""
    needs_checkpoint = False
    """Whether the command takes the best checkpoint of the newest run if --ckpt_path is not given."""

    def __init__(self, command: str, args: Sequence[str], description: str, *, run: bool) -> None:
        """
        Args:
            command: Name of the command, such as `fit` or `data show`.
            args: Arguments of the command.
            description: First paragraph of the help.
            run: Whether the command is a method of the Trainer.
        """
        self.command = command
        if str(Path.cwd()) not in sys.path:  # to import the user's classes; last, so that no file shadows a library
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
            save_config_callback=None,  # RunFolder writes the config
            auto_configure_optimizers=False,
            parser_kwargs={"exit_on_error": False, command: kwargs} if run else kwargs,
            args=[command, *self.given.args] if run else self.given.args,
            run=run,
        )

    @property
    def options(self) -> Namespace:
        """Parsed options of the command."""
        options: Namespace = self.config[self.command] if "subcommand" in self.config else self.config
        return options

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options that do not belong to the model, the data module or the Trainer."""
        self.own_parser = parser
        self.add_own_arguments(parser)
        parser.add_argument("--seed", type=int, default=0, help="Seed of weights, data order, dropout and samples.")
        fetch = "Fetch data from URLs and hub datasets that only the checkpoint names."
        parser.add_argument("--allow_fetch", type=bool, default=False, help=fetch)
        for name, kind in (("model_class", LitLM), ("data_class", LMDataModule)):
            text = f"Class path of a subclass of {kind.__name__}; same as --{name.removesuffix('_class')} CLASS_PATH."
            parser.add_argument(f"--{name}", type=str | None, help=text)

    def add_own_arguments(self, parser: LightningArgumentParser) -> None:
        """Add the options of the command."""
        parser.add_argument("--ckpt_path", type=str | None, help=CKPT_PATH_HELP + BY_DEFAULT * self.needs_checkpoint)
        parser.add_argument("--name", type=str | None, help=NAME_HELP)

    def accept(self, parser: LightningArgumentParser, **types: Any) -> None:
        """Accept and ignore options of `fit`, so that its configs can be used.

        Raises:
            ValueError: if the user gives an option that `fit` does not have.
        """
        for name, kind in types.items():
            parser.add_argument(f"--{name}", type=kind, default=None, help=SUPPRESS)
        known = known_options()
        groups = tuple(f"{name}." for name in types if any(option.startswith(f"{name}.") for option in known))
        if wrong := [name for name in sorted(self.given.names) if name.startswith(groups) and name not in known]:
            raise ValueError("\n".join(unknown_option(name, list(known)) for name in wrong))

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add model and data before the Trainer, whose many options would hide them in the help."""
        parser.add_lightning_class_args(self.own_model_class, "model")
        parser.add_lightning_class_args(self.own_data_class, "data")
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({f"trainer.{name}": value for name, value in self.trainer_defaults.items()})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link the options that model and data share."""
        parser.link_arguments("seed", "model.seed")
        parser.link_arguments("seed", "data.seed")
        parser.link_arguments("model.net.context_length", "data.context_length")
        parser.link_arguments("model.net.vocab_size", "data.vocab_size")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the user's arguments, after the config of the checkpoint."""
        if (topic := help_topic(self.given.args)) is not None:
            report(help_text(self.own_parser, self.command, topic).rstrip())
            sys.exit()
        command = args[: len(args) - len(self.given.args)]
        if helps := [arg for arg in self.given.args if arg.partition("=")[0].endswith(".help")]:
            self._parsed([*command, helps[0]])  # exits; what else is given does not matter
        self.config = self._parsed(
            [*command, *(arg for arg in self.given.args if not arg.startswith("--print_config"))]
        )
        own, self.checkpoint = self.options, self.find_checkpoint()
        if self.checkpoint is not None:
            for option, name in self.checkpoint.own_classes.items():
                if own[option] is None:
                    flag = option.removesuffix("_class")
                    raise ValueError(
                        f"the checkpoint was trained with the class {name}; to use it, pass --{flag} {name}"
                    )
            content = self.checkpoint.config(training=self.trains, named=self._named_classes(own))
            self.config = self._parsed([*command, f"--config={json.dumps(content)}", *self.given.args])
            check_texts(content, self.options, self.given.names)
            if not self.options.allow_fetch:
                check_addresses(own, self.options, tokenizer=self.checkpoint.tokenizer is None)
        elif (shape := self.initial_shape()) is not None:
            brought = json.dumps({"model": {"net": shape}})
            self.config = self._parsed([*command, f"--config={brought}", *self.given.args])
        elif any(arg.startswith("--print_config") for arg in self.given.args):
            self._parsed(args)
        self.options.ckpt_path = None  # the saved config must not depend on a checkpoint

    def find_checkpoint(self) -> Checkpoint | None:
        """Read the checkpoint that the options name; None: they name none."""
        path, name = self.options.ckpt_path, self.options.name
        if path is None and not self.needs_checkpoint:
            return None
        # next to a path, a name from a config of fit is ignored, but one from the command line is an error
        named = any(arg == "--name" or arg.startswith("--name=") for arg in self.given.args)
        meant = path in (None, "best", "last") or named
        return read_checkpoint(chosen_checkpoint(path, name if meant else None))

    def initial_shape(self) -> dict[str, Any] | None:
        """The shape of the model that a new run starts from; None: it starts from random weights."""
        return None

    def before_instantiate_classes(self) -> None:
        """Make the data paths absolute, and check the config.

        Raises:
            ValueError: listing all problems, a line each.
        """
        options = self.options
        for name, base in (("optimizer", Optimizer), ("schedule", LRScheduler)):  # else any callable would be called
            if options.model[name] is None:
                raise ValueError(f"model.{name} is null; name a class, or leave it out")
            import_class(options.model[name].class_path, f"model.{name}", base)
        make_data_absolute(options.data)
        if problems := find_problems(self.command, options.as_dict(), self.checkpoint):
            raise ValueError("\n".join(problems))

    def hand_over_tokenizer(self) -> None:
        """Use the checkpoint's tokenizer in the data module, unless the user names another."""
        if self.checkpoint is not None and self.options.data.tokenizer == self.checkpoint.data.get("tokenizer"):
            self.datamodule.tokenizer = self.checkpoint.tokenizer

    def _set_seed(self) -> None:
        if not 0 <= self.options.seed < 2**32:
            raise ValueError(f"seed is {self.options.seed}; it must be between 0 and {2**32 - 1:,}")
        seed_everything(self.options.seed, workers=True, verbose=False)

    def _parsed(self, args: Sequence[str]) -> Namespace:
        return parse(self.parser, args, self.own_parser)

    def _named_classes(self, own: Namespace) -> dict[str, str]:
        """class_path of the optimizer, schedule and source, if the user named them."""
        named = {part: own.model[part].class_path for part in TRUSTED_CLASSES if f"model.{part}" in self.given.names}
        if isinstance(own.data.source, dict) and "class_path" in own.data.source:
            named["source"] = own.data.source["class_path"]
        return named


def parse(parser: LightningArgumentParser, args: Sequence[str], own: LightningArgumentParser) -> Namespace:
    """Parse the arguments of a command.

    Args:
        parser: Parser to call.
        args: Arguments.
        own: Parser that knows the command's options: a subcommand of `parser`, or `parser` itself.

    Raises:
        ValueError: if an argument is invalid.
    """
    try:
        return parser.parse_args(with_values(args, bool_options(own), positionals=False), with_meta=False)
    except ArgumentError as error:
        raise ValueError(explained(" ".join(str(error).split()), [*own.get_defaults().keys()])) from None
    except RecursionError:
        raise ValueError("the value of an option is nested too deeply") from None
    except (AttributeError, IndexError, KeyError, TypeError) as error:  # jsonargparse does not expect every value
        raise ValueError(f"the value of an option is invalid ({type(error).__name__}: {error})") from None


def _own_class(args: Sequence[str], option: str, base: type[T]) -> type[T]:
    """The class that `option` names; `base` if it is not given.

    Raises:
        ValueError: if the class cannot be imported or is not a subclass of `base`.
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
    return import_class(str(given), option, base)


def import_class(class_path: str, option: str, base: type[T]) -> type[T]:
    """Import the class that an option names.

    Raises:
        ValueError: if it cannot be imported or is not a subclass of `base`.
    """
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{option} is {class_path}, which cannot be imported: {error}") from None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{option} is {class_path}; it must be a subclass of {base.__name__}")
    return found
