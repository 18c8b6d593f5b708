"""Checks of the whole config, which report all problems at once before anything is built."""

import difflib
import inspect
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from lit_lm.checkpoint import Checkpoint
from lit_lm.data.datamodule import LMDataModule
from lit_lm.model.config import TransformerConfig

FREE_IN_DATA = {"micro_batch_size", "num_workers", "cache_dir"}
"""Data options that do not change which tokens a step reads."""
LINKED_IN_DATA = {"context_length", "vocab_size", "seed"}
"""Data options that are linked to other options, which are compared instead."""
FIXED_IN_DATA = tuple(
    name for name in inspect.signature(LMDataModule).parameters if name not in FREE_IN_DATA | LINKED_IN_DATA
)
"""Data options that decide which tokens a step reads; a resumed run may change them only with --allow_changes."""

FREE_IN_NET = ("dropout", "zero_init")
"""Options of the Transformer that can change after training."""

NOT_IN_STEPS = ("limit_train_batches", "overfit_batches", "fast_dev_run")
"""Trainer options that count batches; runs are measured in steps."""


def find_problems(command: str, config: Mapping[str, Any], checkpoint: Checkpoint | None) -> list[str]:
    """All problems of a command's config, including conflicts with the checkpoint."""
    problems = _fit_problems(config["trainer"]) if command == "fit" else []
    if checkpoint is not None:
        problems += _changes(command, checkpoint, config)
    known = inspect.signature(LMDataModule).parameters  # the user's own class may have more
    checked: list[tuple[type, Mapping[str, Any]]] = [
        (TransformerConfig, config["model"]["net"]),
        (LMDataModule, {name: value for name, value in config["data"].items() if name in known}),
    ]
    for kind, values in checked:
        try:
            kind(**values)
        except ValueError as error:
            problems.append(str(error))
    return problems


def with_nearest(message: str, options: Sequence[str]) -> str:
    """The parser's error message; if it is about an unknown name, with the nearest known one appended."""
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
        f"trainer.{name} counts batches, but runs are measured in steps; use trainer.max_steps"
        for name in NOT_IN_STEPS
        if trainer[name]
    ]
    max_steps, max_epochs = trainer["max_steps"], trainer["max_epochs"]
    if max_steps == 0 or max_epochs == 0:
        problems.append("the run has 0 steps: trainer.max_steps and trainer.max_epochs must be at least 1")
    elif max_steps < 0 and (max_epochs is None or max_epochs < 0):
        problems.append("the run has no end: set trainer.max_steps or trainer.max_epochs")
    if (every := trainer["log_every_n_steps"]) is not None and every < 1:
        problems.append(f"trainer.log_every_n_steps is {every}; it must be at least 1")
    return problems


def _changes(command: str, checkpoint: Checkpoint, config: Mapping[str, Any]) -> list[str]:
    """Messages about values that must equal the checkpoint's but differ, and the remedy."""
    net = {f"model.net.{name}": value for name, value in checkpoint.model["net"].items() if name not in FREE_IN_NET}
    learned = checkpoint.model["net"]["positions"] == "learned"  # else the weights fit any context length
    weights = {name for name in net if learned or name != "model.net.context_length"}
    fixed = net | {f"data.{name}": checkpoint.data[name] for name in ("tokenizer",) if name in checkpoint.data}
    if command == "fit":
        fixed |= {f"data.{name}": checkpoint.data[name] for name in FIXED_IN_DATA if name in checkpoint.data}
        fixed |= {"seed": checkpoint.model["seed"], "model.document_mask": checkpoint.model["document_mask"]}
    changed = []
    for name, before in fixed.items():
        after: Any = config
        for key in name.split("."):
            after = after[key]
        if before != after and (name in weights or command != "fit" or not config["allow_changes"]):
            changed.append((name, before, after))
    problems = [f"{name} was {before} and is {after}" for name, before, after in changed]
    if changed:
        several = len(changed) > 1
        remedy = f"{'These values differ' if several else 'This value differs'} from the checkpoint's. "
        remedy += f"Remove {'them' if several else 'it'}"
        if command == "fit" and not any(name in weights for name, *_ in changed):
            remedy += f", or pass --allow_changes true to use the new {'ones' if several else 'one'}"
        problems.append(f"{remedy}.")
    return problems
