"""What a checkpoint holds; writing one so that it is whole or absent; finding and reading one safely.

A checkpoint is the Trainer's file and stands alone: beside the weights and the optimizer's state it has the
hyperparameters of model and data as plain values, and the tokenizer. A digest lies beside it (`sha256sum -c` reads it
too). It is data: it is read with `weights_only`, which admits tensors and plain values and runs no code. Of the classes
that it names, only those of TRUSTED_CLASSES are ever imported, and only with numbers and words as their arguments.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from lit_lm.model import Transformer, TransformerConfig
from lit_lm.text.tokenizer import Tokenizer

LOGS = Path("logs")
"""Where the runs are."""

TRUSTED_CLASSES = {
    "optimizer": {
        "lit_lm.muon.Muon",
        *(f"lit_lm.optim.{name}" for name in ("AdamW", "SGDDecay")),
        *(
            f"torch.optim.{name}"
            for name in ("ASGD", "SGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "Muon", "NAdam",
                         "RAdam", "RMSprop", "Rprop")
        ),
    },
    "schedule": {
        *(f"lit_lm.schedules.{name}" for name in ("WarmupCosine", "WarmupStableDecay")),
        *(
            f"torch.optim.lr_scheduler.{name}"
            for name in ("ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "CyclicLR", "ExponentialLR",
                         "LinearLR", "MultiStepLR", "OneCycleLR", "PolynomialLR", "StepLR")
        ),
    },
}  # fmt: skip
"""What a checkpoint may name: classes that do nothing but their work, whatever numbers they are given. Those that take
a function or build other classes are not among them.
"""

LEFT_OUT = {"model": {"seed"}, "data": {"seed", "context_length", "vocab_size", "cache_dir"}}
"""Hyperparameters that a command does not take from a checkpoint: they are linked to others, or, the folder that is
written to, the user's to choose.
"""


@dataclass(frozen=True)
class Checkpoint:
    """The parts of a checkpoint that outlive the run."""

    step: int
    """Optimizer steps taken."""
    model: dict[str, Any]
    """LitLM's hyperparameters."""
    data: dict[str, Any]
    """LMDataModule's hyperparameters."""
    digests: dict[str, str]
    """Of the tokens that training and validation read."""
    stream: dict[str, Any] | None
    """Where a stream of training data was."""
    tokenizer: Tokenizer
    weights: dict[str, torch.Tensor]
    """The Transformer's state dict, mapped from the file rather than read."""

    def config(self, *, training: bool, named: Mapping[str, str] = {}) -> dict[str, Any]:
        """The hyperparameters as a config file for the command line, without those that are LEFT_OUT.

        Args:
            training: Whether optimizer and schedule are wanted: they name classes, and only training needs them.
            named: The classes of optimizer and schedule that the user's own command names, which are trusted.

        Raises:
            ValueError: if it holds anything but plain values, or names a class that is not trusted.
        """
        model = {key: value for key, value in self.model.items() if key not in {*LEFT_OUT["model"], *TRUSTED_CLASSES}}
        data = {key: value for key, value in self.data.items() if key not in LEFT_OUT["data"]}
        _check_plain("model", model, mapping="net", keys={field.name for field in fields(TransformerConfig)})
        _check_plain("data", data, mapping="source")
        for part in TRUSTED_CLASSES.keys() & self.model.keys() if training else ():
            value = self.model[part]
            spec = {"class_path": value} if isinstance(value, str) else value
            if _is_trusted(part, spec, named.get(part)):
                model[part] = spec
            elif part not in named:
                name = spec.get("class_path") if isinstance(spec, Mapping) else spec
                raise ValueError(
                    f"the checkpoint names {name} as its {part}, with arguments that may run code or from outside of "
                    f"lit_lm and torch; it is used only if you name it yourself: --model.{part} {name}"
                )
        seed = self.model["seed"]
        if type(seed) is not int:
            raise ValueError(f"the checkpoint's seed is {seed!r}, not a whole number")
        return {"seed": seed, "model": model, "data": data}

    def transformer(self) -> Transformer:
        """The model, in evaluation mode on the CPU."""
        model = Transformer(TransformerConfig(**self.model["net"]))
        model.load_state_dict(self.weights)
        return model.eval()


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of `lit-lm fit`.

    Raises:
        FileNotFoundError: if there is no file at `path`.
        ValueError: if it is damaged, holds more than data, or was not written by lit-lm.
    """
    content = _load(path)
    try:
        checkpoint = Checkpoint(
            step=content["global_step"],
            model=_plain(content["hyper_parameters"]),
            data=_plain(content["datamodule_hyper_parameters"]),
            digests=dict(content["LMDataModule"]["digests"]),
            stream=content["LMDataModule"].get("stream"),
            tokenizer=Tokenizer.from_json(content["LMDataModule"]["tokenizer"]),
            weights={
                key.removeprefix("net."): value
                for key, value in content["state_dict"].items()
                if key.startswith("net.")
            },
        )
        checkpoint.config(training=False)
        return checkpoint
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} was not written by lit-lm ({type(error).__name__}: {error})") from None


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint and its digest; under its name it appears last, and only when it is whole and on the disk.

    Raises:
        OSError, RuntimeError: if it cannot be written; nothing is left behind then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with open(unfinished, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        with open(_digest_file(path), "w", encoding="ascii") as digest:
            digest.write(f"{_sha256(unfinished)}  {path.name}\n")
            digest.flush()
            os.fsync(digest.fileno())
        unfinished.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        if not path.exists():
            _digest_file(path).unlink(missing_ok=True)
        raise


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first."""
    return sorted(folder.glob("step_*.ckpt"), reverse=True)


def checkpoint_digest(path: Path) -> str:
    """SHA-256 of a checkpoint's file."""
    return _sha256(path)


def run_folder(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint is of; of one that was moved away, the folder that it lies in."""
    folder = checkpoint.resolve().parent
    return folder.parent if folder.name == "checkpoints" else folder


def versions(run: Path) -> list[Path]:
    """The folders of a run's versions, newest first."""
    numbered = {path.name.removeprefix("version_"): path for path in run.glob("version_*")}
    return [numbered[number] for number in sorted(filter(str.isdecimal, numbered), key=int, reverse=True)]


def find_checkpoint(where: str, name: str | None = None) -> Path:
    """The checkpoint that is meant.

    Args:
        where: A checkpoint; a run's folder or one version's, for its best checkpoint; or best or last.
        name: Of the run whose best or last is meant; None: of the newest run of all.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if two runs are named.
    """
    path = Path(where)
    if name is not None and where not in ("best", "last"):
        raise ValueError(f"ckpt_path is {where}, which names its run itself; leave out name, or say best or last")
    if path.is_file():
        return path
    if path.is_dir():
        which, folders = "best", [path / "checkpoints", path, *(folder / "checkpoints" for folder in versions(path))]
    elif where in ("best", "last"):
        which, run = where, LOGS if name is None else LOGS / name
        folders = [folder / "checkpoints" for folder in versions(run)]
        if name is None:
            folders = sorted(
                run.rglob("version_*/checkpoints"), key=lambda folder: folder.stat().st_mtime, reverse=True
            )
    else:
        raise FileNotFoundError(f"there is no checkpoint at {where}")
    for folder in folders:
        for link in (folder / f"{which}.ckpt", folder / "last.ckpt"):  # without validation there is no best one
            if link.is_file():
                return link
    place = path if path.is_dir() else run
    raise FileNotFoundError(f"there is no checkpoint in {place}; train a model with lit-lm fit, or give --ckpt_path")


def newest_good_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a run that can be read, and what is wrong with those that are newer."""
    problems = []
    for path in checkpoints_in(folder):
        try:
            _load(path)
        except ValueError as error:
            problems.append(str(error))
        else:
            return path, problems
    return None, problems


def point_to(link: Path, target: Path) -> None:
    """Make `link` lead to `target` in the same folder, at once."""
    unfinished = link.with_name(f".{link.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    unfinished.symlink_to(target.name)
    unfinished.replace(link)


def keep_only(folder: Path, kept: set[Path]) -> None:
    """Remove the other checkpoints of a run, their digests, and what a crash left unfinished."""
    for path in [*folder.glob("step_*.ckpt"), *folder.glob(".*.unfinished")]:
        if path not in kept:
            path.unlink(missing_ok=True)
            _digest_file(path).unlink(missing_ok=True)


def _is_trusted(part: str, spec: Any, named: str | None) -> bool:
    """Whether a class and its arguments can be taken from a checkpoint: both are listed or the user's, and plain."""
    if not isinstance(spec, Mapping) or not spec.keys() <= {"class_path", "init_args"}:
        return False
    arguments = spec.get("init_args") or {}
    return (
        isinstance(spec.get("class_path"), str)
        and (spec["class_path"] in TRUSTED_CLASSES[part] or spec["class_path"] == named)
        and isinstance(arguments, Mapping)
        and all(isinstance(key, str) and key.isidentifier() and _is_harmless(arguments[key]) for key in arguments)
    )


def _is_harmless(value: Any) -> bool:
    """Whether an argument is a number, a word, or a list of numbers: nothing that could name code."""
    if isinstance(value, list | tuple):
        return all(type(item) in (bool, int, float) for item in value)
    return value is None or type(value) in (bool, int, float) or (type(value) is str and value.isidentifier())


def _check_plain(part: str, values: Mapping[str, Any], *, mapping: str, keys: set[str] | None = None) -> None:
    """Refuse hyperparameters that are not plain values, but for one that may be a mapping of plain values.

    Raises:
        ValueError: naming one.
    """
    for name, value in values.items():
        inner = value if name == mapping and isinstance(value, Mapping) else {"": value}
        for key, item in inner.items():
            known = keys is None or name != mapping or key in keys
            if not (isinstance(key, str) and known and (item is None or type(item) in (bool, int, float, str))):
                place = ".".join(filter(None, (part, str(name), str(key))))
                raise ValueError(f"the checkpoint's {place} is {str(item)[:80]!r}, which is not a plain value of it")


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    digest = _digest_file(path.resolve())
    if digest.is_file() and digest.read_text(encoding="ascii", errors="replace").split()[:1] != [_sha256(path)]:
        raise ValueError(f"{path} is damaged: it does not match its digest")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # type: ignore[no-any-return]
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError and others for a bad file
        if match := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(f"{path} is refused: it would run {match[1]}, and a checkpoint is only data") from None
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} cannot be read as a checkpoint, it is damaged or not one ({reason})") from None


def _digest_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Have a rename survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _plain(hyperparameters: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in dict(hyperparameters).items() if not key.startswith("_")}
