"""What can be wrong with a configuration as a whole, all of it at once and before anything is built."""

import difflib
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from typing import Any

from lit_lm.checkpoint import Checkpoint
from lit_lm.data.datamodule import LMDataModule
from lit_lm.inference.sampling import Sampling
from lit_lm.model.transformer import TransformerConfig

FIXED_IN_DATA = (
    "source",
    "val_source",
    "val_fraction",
    "tokenizer",
    "tokenizer_type",
    "batch_size",
    "stride",
    "sampling",
    "text_field",
    "bin_dtype",
    "streaming",
    "shuffle_buffer",
    "lanes",
)
"""What decides which tokens a step sees, and so cannot change in the middle of a run unnoticed."""

FREE_IN_NET = ("dropout", "zero_init")
"""What can change in a Transformer that has weights already."""

NOT_IN_STEPS = ("limit_train_batches", "overfit_batches", "fast_dev_run")
"""Options of the Trainer that count batches, where a run is counted in steps."""


def find_problems(command: str, config: Mapping[str, Any], checkpoint: Checkpoint | None) -> list[str]:
    """Everything that is wrong with a command's configuration, or with going on from that checkpoint with it."""
    problems = _fit_problems(config["trainer"]) if command == "fit" else []
    if checkpoint is not None:
        problems += _changes(command, checkpoint, config)
    checked: list[tuple[type, Mapping[str, Any]]] = [
        (TransformerConfig, config["model"]["net"]),
        (LMDataModule, config["data"]),
    ]
    if command == "predict":
        checked.append((Sampling, sampling_options(config)))
        if config["batch_size"] < 1:
            problems.append(f"batch_size is {config['batch_size']}; it must be at least 1")
        if "" in config["stop"]:
            problems.append("stop is an empty text, which everything begins with; leave it out")
    for kind, values in checked:
        try:
            kind(**values)
        except ValueError as error:
            problems.append(str(error))
    return problems


def sampling_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of predict's configuration that makes a Sampling."""
    return {field.name: config[field.name] for field in fields(Sampling)}


def with_nearest(message: str, options: Sequence[str]) -> str:
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


def _fit_problems(trainer: Mapping[str, Any]) -> list[str]:
    problems = [
        f"trainer.{name} counts batches, but a run is counted in steps; use trainer.max_steps"
        for name in NOT_IN_STEPS
        if trainer[name]
    ]
    max_steps, max_epochs = trainer["max_steps"], trainer["max_epochs"]
    if max_steps == 0 or max_epochs == 0:
        problems.append("a run of 0 steps: trainer.max_steps and trainer.max_epochs must be at least 1")
    elif max_steps < 0 and (max_epochs is None or max_epochs < 0):
        problems.append("the run has no end: set trainer.max_steps or trainer.max_epochs")
    if (every := trainer["log_every_n_steps"]) is not None and every < 1:
        problems.append(f"trainer.log_every_n_steps is {every}; it must be at least 1")
    if trainer["logger"] is False:
        problems.append("trainer.logger is false, but the run's folder is the logger's; leave it out")
    return problems


def _changes(command: str, checkpoint: Checkpoint, config: Mapping[str, Any]) -> list[str]:
    """What differs between the configuration of a checkpoint and the one that it is used with."""
    net = {f"model.net.{name}": value for name, value in checkpoint.model["net"].items() if name not in FREE_IN_NET}
    fixed = net | {"data.tokenizer": checkpoint.data["tokenizer"]}
    if command == "fit":
        if config["allow_changes"]:
            # weights fit another context, unless positions are weights
            learned = checkpoint.model["net"]["positions"] == "learned"
            fixed = {name: value for name, value in net.items() if learned or name != "model.net.context_length"}
        else:
            known = [name for name in FIXED_IN_DATA if name in checkpoint.data]  # an older one has fewer options
            fixed |= {f"data.{name}": checkpoint.data[name] for name in known} | {
                "seed": checkpoint.model["seed"],
                "model.document_mask": checkpoint.model.get("document_mask", False),
            }
    problems = []
    for name, before in fixed.items():
        after: Any = config
        for key in name.split("."):
            after = after[key]
        if before != after:
            problems.append(f"{name} was {before} and is {after}")
    if problems:
        way_on = ", or say --allow_changes true" if command == "fit" and not config["allow_changes"] else ""
        problems.append(
            f"the checkpoint was made with the former; leave {'them' if len(problems) > 1 else 'it'} out{way_on}"
        )
    return problems
