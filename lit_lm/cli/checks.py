"""Checks of the whole config, which report all problems at once before anything is built."""

import difflib
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler, StochasticWeightAveraging

from lit_lm.checkpoint import Checkpoint
from lit_lm.data.datamodule import LMDataModule
from lit_lm.data.windows import MAX_STEPS
from lit_lm.memory import check_memory
from lit_lm.model.config import TransformerConfig
from lit_lm.model.cost import training_memory
from lit_lm.training.sharding import FullyShardedStrategy

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

MIN_CPU_PROCESSES = 8
"""Processes that any CPU may train with, to try out more devices than it has cores."""
CLUSTER_VARIABLES = {"MASTER_ADDR", "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID", "LSB_JOBID", "KUBERNETES_PORT"}
"""Environment variables of which one is set where a run has several nodes."""

SHARDED = f"{FullyShardedStrategy.__module__}.{FullyShardedStrategy.__qualname__}"

METRICS = ("train/loss", "val/loss", "val/perplexity", "val/bits_per_byte", "val/bits_per_character")
"""What callbacks can monitor; several sources add val/loss/SOURCE and val/bits_per_byte/SOURCE."""

NOT_IN_STEPS = ("limit_train_batches", "overfit_batches", "fast_dev_run")
"""Trainer options that count batches; runs are measured in steps."""


def find_problems(command: str, config: Mapping[str, Any], checkpoint: Checkpoint | None) -> list[str]:
    """All problems of a command's config, including conflicts with the checkpoint."""
    problems = []
    if command in ("fit", "validate", "test"):
        problems += trainer_problems(config["trainer"])
    if command == "fit":
        problems += _name_problems(config["name"]) + _fit_problems(config["trainer"])
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
    if command == "fit" and not problems:
        problems = _memory_problems(config)
    return problems


def callback_problems(callbacks: Sequence[Callback]) -> list[str]:
    """Problems of the user's callbacks that would otherwise appear in the middle of a run, or never."""
    problems = []
    for callback in callbacks:
        name, monitor = type(callback).__name__, getattr(callback, "monitor", None)
        if isinstance(callback, GradientAccumulationScheduler):
            problems.append(
                f"{name} changes the batch size, which data.batch_size sets for the whole run; leave it out"
            )
        elif isinstance(callback, StochasticWeightAveraging):
            problems.append(
                f"{name} counts Lightning's epochs, of which a run is one, and would end with the initial weights; use "
                "lightning.pytorch.callbacks.EMAWeightAveraging"
            )
        elif monitor is not None and not str(monitor).startswith(METRICS):
            nearest = difflib.get_close_matches(str(monitor), METRICS, n=1, cutoff=0)
            problems.append(f"{name} monitors {monitor!r}, which is never logged; did you mean {nearest[0]}?")
    return problems


def _fit_problems(trainer: Mapping[str, Any]) -> list[str]:
    problems = [
        f"trainer.{name} counts batches, but runs are measured in steps; use trainer.max_steps"
        for name in NOT_IN_STEPS
        if trainer[name]
    ]
    if trainer["barebones"]:
        problems.append(
            "trainer.barebones turns off what fit is for; use trainer.enable_checkpointing and trainer.logger"
        )
    max_steps, max_epochs = trainer["max_steps"], trainer["max_epochs"]
    if max_steps == 0 or max_epochs == 0:
        problems.append("the run has 0 steps: trainer.max_steps and trainer.max_epochs must be at least 1")
    elif max_steps > MAX_STEPS:
        problems.append(f"trainer.max_steps is {max_steps}; it must be at most {MAX_STEPS:,}")
    elif max_steps < 0 and (max_epochs is None or max_epochs < 0):
        problems.append(
            "the run has no end: set --trainer.max_steps or --trainer.max_epochs, or start from a recipe, such as "
            "--config quick"
        )
    for name in ("log_every_n_steps", "val_check_interval", "check_val_every_n_epoch"):
        if isinstance(every := trainer[name], int | float) and not every > 0:
            problems.append(f"trainer.{name} is {every}; it must be at least 1")
    if (every := trainer["check_val_every_n_epoch"]) is not None and every > 1:
        problems.append(
            f"trainer.check_val_every_n_epoch is {every}, but a run is one of Lightning's epochs; use "
            "trainer.val_check_interval, in steps"
        )
    if (clip := trainer["gradient_clip_val"]) is not None and not 0 <= clip <= sys.float_info.max:
        problems.append(
            f"trainer.gradient_clip_val is {clip}; it must be at least 0, which turns clipping off, and finite"
        )
    return problems


def _name_problems(name: str | None) -> list[str]:
    if name and not Path(name).is_absolute() and not {"..", "."} & set(name.split("/")) and name.isprintable():
        return []
    return [f"name is {name!r}; it must be the name of a folder in logs/"]


def trainer_problems(trainer: Mapping[str, Any]) -> list[str]:
    """Problems of devices and precision, which would otherwise end in a hang or in wrong numbers."""
    problems = []
    on_cpu = trainer["accelerator"] == "cpu" or (trainer["accelerator"] == "auto" and not torch.cuda.is_available())
    most = max(MIN_CPU_PROCESSES, os.cpu_count() or 1)
    devices = str(trainer["devices"])
    if on_cpu and devices != "auto" and not (devices.isdecimal() and 1 <= int(devices) <= most):
        problems.append(f"trainer.devices is {devices}; on this CPU it must be auto or a number from 1 to {most}")
    if trainer["num_nodes"] < 1:
        problems.append(f"trainer.num_nodes is {trainer['num_nodes']}; it must be at least 1")
    elif trainer["num_nodes"] > 1 and not CLUSTER_VARIABLES & set(os.environ):
        problems.append(
            f"trainer.num_nodes is {trainer['num_nodes']}, but the other nodes are unknown: start the command on every "
            "node with torchrun or SLURM, or set MASTER_ADDR, MASTER_PORT and NODE_RANK"
        )
    if on_cpu and str(trainer["precision"]).startswith(("16", "transformer-engine")):
        problems.append(f"trainer.precision is {trainer['precision']}, which needs a GPU; use bf16-mixed or 32-true")
    return problems


def is_sharded(strategy: Any) -> bool:
    """Whether an option trainer.strategy is FullyShardedStrategy."""
    spec = strategy.as_dict() if isinstance(strategy, Namespace) else strategy
    return isinstance(spec, Mapping) and spec.get("class_path") == SHARDED


def _memory_problems(config: Mapping[str, Any]) -> list[str]:
    """The problem that the run does not fit into memory, if so. Of a sharded run, `lit-lm plan` computes the memory."""
    net, data, trainer = TransformerConfig(**config["model"]["net"]), config["data"], config["trainer"]
    if is_sharded(trainer["strategy"]):
        return []
    on_gpu = trainer["accelerator"] in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    devices = num_devices(trainer["devices"], on_gpu=on_gpu)
    rows = data["micro_batch_size"] or max(1, data["batch_size"] // (devices * trainer["num_nodes"]))
    recompute = config["model"]["activation_checkpointing"]
    needed = training_memory(net, rows * net.context_length, recompute=recompute)
    try:
        check_memory(
            needed if on_gpu else needed * devices,
            f"training with {rows:,} x {net.context_length:,} tokens per device, d_model {net.d_model:,}, num_layers "
            f"{net.num_layers:,}, d_ff {net.feed_forward_size:,} and vocab_size {net.vocab_size:,}",
            "reduce them, or set data.micro_batch_size",
            "cuda" if on_gpu else "cpu",
        )
    except ValueError as error:
        return [str(error)]
    return []


def num_devices(devices: Any, *, on_gpu: bool) -> int:
    """Devices of a machine that an option trainer.devices uses: a number, auto, or the numbers of GPUs."""
    if isinstance(devices, list):
        return len(devices)
    if str(devices) in ("auto", "-1"):
        return torch.cuda.device_count() if on_gpu else 1
    return max(1, int(devices)) if str(devices).isdecimal() else len(str(devices).strip(",").split(","))


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
