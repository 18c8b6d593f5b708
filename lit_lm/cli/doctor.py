"""`lit-lm doctor`: check that this machine can train, and how fast.

Imports torch only when it is checked, because that it cannot be imported is a finding, too.
"""

import os
import platform
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lit_lm.cli.options import Parser
from lit_lm.cli.recipes import recipes
from lit_lm.files import cache_folder

SECONDS = 2.0
"""Duration of the speed test."""
LITTLE, TOO_LITTLE = 2 * 2**30, 2**28
"""Free bytes of a disk that are worth a warning, and with which no run should start."""


class Finding(NamedTuple):
    """Result of a check."""

    text: str
    is_good: bool = True
    prevents_training: bool = False


def run(args: Sequence[str], description: str) -> None:
    """Run `lit-lm doctor`. Exits with code 1 if something prevents training.

    Raises:
        ValueError: if the arguments are invalid.
    """
    Parser("lit-lm doctor", description=description).parse_args(args[1:])
    can_train = True
    for finding in _findings():
        print(f"{'ok' if finding.is_good else '! '} {finding.text}", flush=True)
        can_train = can_train and not finding.prevents_training
    if not can_train:
        sys.exit(1)


def _findings() -> Iterator[Finding]:
    packages = list(_packages())
    yield from packages
    if any(finding.prevents_training for finding in packages):
        return  # the other checks need them
    try:
        import torch  # noqa: F401
    except (ImportError, OSError) as error:
        yield _bad(f"torch cannot be imported: {error}; install it again, see https://pytorch.org/get-started", True)
        return
    from lit_lm.runs import LOGS
    from lit_lm.training.hardware import busy_load

    yield from _device()
    yield from _compilers()
    yield from _memory()
    yield _disk("runs", LOGS, "change to another folder, or set --trainer.default_root_dir")
    yield _disk("cache", cache_folder(), "set XDG_CACHE_HOME or --data.cache_dir")
    if (load := busy_load()) is not None:
        yield _bad(f"other programs keep the CPUs busy (load {load:.1f}), which makes training slower")
    yield _speed()


def _bad(text: str, prevents_training: bool = False) -> Finding:
    return Finding(text, False, prevents_training)


def _packages() -> Iterator[Finding]:
    names = [re.split(r"[^\w.-]", text)[0] for text in requires("lit-lm") or [] if "extra ==" not in text]
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            yield _bad(f"{name} is missing: pip install {name}", True)
    shown = ", ".join(f"{name} {found[name]}" for name in ("torch", "lightning") if name in found)
    yield Finding(f"lit-lm {version('lit-lm')}, Python {platform.python_version()}, {shown}")


def _device() -> Iterator[Finding]:
    import torch

    from lit_lm.training.hardware import WORTH_BFLOAT16, best_precision

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        name = f"{count} x {torch.cuda.get_device_name(0)} (cuda)"
    else:
        name = "mps" if torch.backends.mps.is_available() else f"cpu, {torch.get_num_threads()} threads"
    narrow, wide = best_precision("auto", WORTH_BFLOAT16 - 1), best_precision("auto", WORTH_BFLOAT16)
    precision = narrow if narrow == wide else f"{narrow}, from d_model {WORTH_BFLOAT16} {wide}"
    yield Finding(f"fit trains on {name}; precision {precision}")
    if shutil.which("nvidia-smi") and not torch.cuda.is_available():
        yield _bad("nvidia-smi is there, but torch sees no GPU: install torch for the driver's CUDA version")


def _compilers() -> Iterator[Finding]:
    from lit_lm.inference.language_model import available_device
    from lit_lm.kernels import build
    from lit_lm.training.hardware import WORTH_COMPILING, worth_compiling

    device = available_device()
    if find_spec("triton") is None if device == "cuda" else not worth_compiling(device, float("inf")):
        remedy = {"cuda": "pip install triton", "cpu": "install g++ or clang++"}.get(device, "not for this device")
        yield _bad(f"torch.compile is not available, so that long runs are slower: {remedy}")
    else:
        yield Finding(f"torch.compile is available; fit compiles runs of {WORTH_COMPILING[device]:.0e} FLOPs or more")
    compiler = shlex.split(os.environ.get("CC", "cc"))[0]
    if None in map(build.load, build.OPTIONS):
        yield _bad(f"{compiler} cannot compile the C files, so that fit and generate are slower: install gcc or set CC")
    else:
        yield Finding(f"on a CPU, fit and generate use C functions, compiled with {compiler}")


def _memory() -> Iterator[Finding]:
    from lit_lm.inference.language_model import available_device
    from lit_lm.memory import machine_memory

    for device in {"cpu", available_device()} - {"mps"}:
        memory = machine_memory(device)
        text = f"{memory / 2**30:,.1f} GiB of memory ({device})"
        yield Finding(text) if memory > LITTLE else _bad(f"{text}; use small models, and a small data.micro_batch_size")


def _disk(purpose: str, folder: Path, remedy: str) -> Finding:
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        return _bad(f"{purpose}: {there} is not a folder that can be written to; {remedy}", True)
    free = shutil.disk_usage(there).free
    text = f"{purpose}: {free / 2**30:,.1f} GiB free in {folder.absolute()}"
    return Finding(text) if free >= LITTLE else _bad(f"{text}; {remedy}", free < TOO_LITTLE)


def _speed() -> Finding:
    config: dict[str, Any] = yaml.safe_load(recipes()["quick"].read_text(encoding="utf-8"))
    tokens = config["data"]["batch_size"] * config["model"]["net"]["context_length"]
    try:
        speed = tokens / _seconds_per_step(config)
    except (RuntimeError, ValueError) as error:
        return _bad(f"a training step fails: {' '.join(str(error).split())}", True)
    seconds = config["trainer"]["max_steps"] * tokens / speed
    duration = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
    return Finding(f"{speed:,.0f} tokens/s with quick's model; lit-lm fit --config quick takes about {duration}")


def _seconds_per_step(config: dict[str, Any]) -> float:
    """Measure training steps of a recipe's model on random tokens."""
    import torch

    from lit_lm.inference.language_model import available_device
    from lit_lm.model.config import TransformerConfig
    from lit_lm.model.losses import linear_cross_entropy
    from lit_lm.model.transformer import Transformer
    from lit_lm.training.hardware import best_precision, flush_denormals, tune_malloc

    flush_denormals()
    tune_malloc()
    optim: Any = import_module("lit_lm.optim")
    device, net = available_device(), TransformerConfig(**config["model"]["net"])
    model = Transformer(net).to(device)
    kind = getattr(optim, config["model"]["optimizer"]["class_path"].rpartition(".")[2])
    groups = optim.parameter_groups(model, model.hidden_matrices())
    optimizer = kind(groups, **config["model"]["optimizer"]["init_args"])
    ids = torch.randint(net.vocab_size, (config["data"]["batch_size"], net.context_length), device=device)
    half = best_precision("auto", net.d_model) != "32-true"
    steps, start, end = -1, 0.0, 0.0
    while steps < 1 or end - start < SECONDS:
        if steps == 0:  # the first step is a warm-up
            start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=half):
            features = model.features(ids).flatten(0, 1)
            loss = linear_cross_entropy(features, model.head.weight, ids.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for the device
        end = time.perf_counter()
        steps += 1
    return (end - start) / steps
