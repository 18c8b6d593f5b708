"""Help of the commands that jsonargparse parses.

`--help` is an overview: a line for each option of a group, and none for those of the Trainer. `--help.model`,
`--help.trainer` and so on describe the options of a group in full.
"""

import re
import shutil
import textwrap
from argparse import SUPPRESS, Action
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from jsonargparse import ArgumentParser

from lit_lm.cli.options import shown

NAMES_WIDTH = 26
MAX_WIDTH = 120

TRAINER_COMMANDS = ("fit", "validate", "test", "predict")
TRAINING = [
    "  --trainer.max_steps N           optimizer steps of the run",
    "  --trainer.val_check_interval N  steps between validations",
]
TRAINER = [
    "  --trainer.devices N             default: all GPUs, or one CPU",
    "  --trainer.precision P           bf16-mixed, 32-true, ...; default: what is fastest here",
    "  --trainer.accelerator A         cpu, gpu, mps; default: the GPU if there is one. --device is short for it",
]
"""The most used options of the Trainer."""

TRAINER_HELP = {
    "max_steps": "Optimizer steps of the run; -1: no limit.",
    "max_epochs": "Passes over the training windows; null: no limit.",
    "val_check_interval": "Optimizer steps between validations, or a duration DD:HH:MM:SS.",
    "check_val_every_n_epoch": "Epochs between validations; null: val_check_interval alone decides.",
    "log_every_n_steps": "Optimizer steps between logged values.",
    "precision": "32-true, bf16-mixed, bf16-true, 16-mixed, ...; null: what is fastest on this machine for this model.",
    "accelerator": "cpu, gpu, mps, ..., or auto: the GPU if there is one. --device is short for it.",
    "devices": "Number of devices, or a list of their indices; auto: all GPUs, or one CPU.",
    "accumulate_grad_batches": "Leave it out: it follows from data.batch_size and data.micro_batch_size.",
    "gradient_clip_val": "Largest gradient norm; larger gradients are scaled down. 0 or null: no limit.",
    "logger": "Logger, or a list of loggers; null: TensorBoard in the run's folder.",
    "enable_checkpointing": "Whether to write checkpoints; null: true.",
    "default_root_dir": "Folder of all runs; null: logs.",
}
"""What lit-lm does differently from the Trainer's docstring."""

TEXTS = {
    "config": "Config: a YAML file, or the name of a recipe, such as quick. Repeatable; options override it.",
    "print_config": "Print the resulting config, and exit.",
    "model.optimizer.help": "List its options, such as --model.optimizer.lr; takes a class.",
    "model.schedule.help": "List its options, such as --model.schedule.warmup_steps; takes a class.",
}
"""Shorter than jsonargparse's."""


def help_topic(args: Sequence[str]) -> str | None:
    """The group whose help is asked for, "" for the overview; None: the user asks for no help."""
    asked = [arg for arg in args if arg in ("-h", "--help") or arg.startswith("--help.")]
    return asked[0].partition(".")[2] if asked else None


def help_text(parser: ArgumentParser, command: str, topic: str) -> str:
    """Help of a command, as wide as the terminal.

    Raises:
        ValueError: if the command has no group `topic`.
    """
    width = min(shutil.get_terminal_size((100, 0)).columns, MAX_WIDTH)
    defaults = parser.get_defaults().as_dict()
    topics: dict[str, None] = {}
    entries: dict[str, list[str]] = {}
    for action in filter(_is_listed, parser._actions):
        of = action.dest.partition(".")[0] if "." in action.dest else ""
        topics[of] = None
        if of == topic if topic else of != "trainer":
            title = str(action.container.title)  # type: ignore[attr-defined]  # of its group
            entries.setdefault(title, []).extend(_entry(action, _default(defaults, action), width, in_full=of == topic))
    if topic not in topics:
        raise ValueError(f"there is no --help.{topic}; see {', '.join(f'--help.{name}' for name in topics if name)}")
    lines = [line for title, group in entries.items() for line in ("", title, *group)]
    if not topic:
        lines.insert(0, f"lit-lm {command} [options]: {parser.description}")
        lines += ["", f"In full: {', '.join(f'--help.{name}' for name in topics if name)}"]
        lines += (TRAINING if command == "fit" else []) + (TRAINER if command in TRAINER_COMMANDS else [])
    return "\n".join(lines).replace("`", "").strip() + "\n"


def _is_listed(action: Action) -> bool:
    """Whether an option is listed; groups, which take a config of their own, are not."""
    is_group = type(action).__name__ == "_ActionConfigLoad"
    is_linked = type(action).__name__ == "ActionLink"
    return action.help != SUPPRESS and bool(action.option_strings) and not is_group and not is_linked


def _entry(action: Action, default: Any, width: int, *, in_full: bool) -> list[str]:
    name = ", ".join(option for option in action.option_strings if not option.endswith("+"))
    text = _described(action, default)
    end = f" [{_shown(action, default)}]" if default not in (None, "", [], ()) else ""  # the text says what null means
    start = f"  {name.ljust(NAMES_WIDTH)}  "
    if not in_full:
        room = width - len(start) - len(end)
        if len(text) > room:
            text = text.partition("; ")[0]
        return [f"{start}{textwrap.shorten(text, room, placeholder=' ...')}{end}"]
    indent = " " * (NAMES_WIDTH + 4)
    wrapped = textwrap.wrap(f"{text}{end}", width, initial_indent=indent, subsequent_indent=indent)
    if len(name) <= NAMES_WIDTH:
        return [start + wrapped[0].strip(), *wrapped[1:]]
    return [f"  {name}", *wrapped]


def _described(action: Action, default: Any) -> str:
    name = action.dest.removeprefix("trainer.")
    if action.dest in TEXTS:
        return TEXTS[action.dest]
    if name != action.dest and name in TRAINER_HELP:
        return TRAINER_HELP[name]
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"\1", " ".join((action.help or "").split()))  # reStructuredText
    text = text.replace("`", "").replace("%%", "%")
    return text if default is None else re.sub(r" Default: \S+\.?(?= |$)", "", text)


def _default(defaults: Mapping[str, Any], action: Action) -> Any:
    value: Any = defaults
    for part in action.dest.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _shown(action: Action, default: Any) -> str:
    if isinstance(default, Mapping) and "class_path" in default:
        default = default["class_path"].removeprefix("lit_lm.optim.")
    choices = [choice for choice in get_args(getattr(action, "_typehint", None)) if isinstance(choice, str)]
    others = [choice for choice in choices if choice not in (default, *re.findall(r"\w+", action.help or ""))]
    return ", or ".join(map(shown, (default, *others)))
