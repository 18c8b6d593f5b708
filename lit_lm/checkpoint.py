"""What a checkpoint holds; writing one so that it is whole or absent; reading one safely.

A checkpoint is the Trainer's file and stands alone: beside the weights and the optimizer's state it has the
hyperparameters of model and data as plain values, and the tokenizer. A digest lies beside it (`sha256sum -c` reads it
too). It is data: it is read with `weights_only`, which admits tensors and plain values and runs no code. Of the classes
that it names, only those of TRUSTED_CLASSES are ever imported, and only with numbers and words as their arguments.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from lit_lm.files import sha256, write_text, write_whole
from lit_lm.model.transformer import Transformer, TransformerConfig
from lit_lm.tokenizer.tokenizer import Tokenizer

FORMAT = 2
"""Changed with what a checkpoint holds; one of another format is refused."""

TRUSTED_CLASSES = {
    "optimizer": {
        *(f"lit_lm.optim.{name}" for name in ("AdamW", "Muon", "SGDDecay")),
        *(
            f"torch.optim.{name}"
            for name in ("ASGD", "SGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "Muon", "NAdam",
                         "RAdam", "RMSprop", "Rprop")
        ),
    },
    "schedule": {
        *(f"lit_lm.optim.{name}" for name in ("WarmupCosine", "WarmupStableDecay")),
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

    path: Path
    step: int
    """Optimizer steps taken."""
    model: dict[str, Any]
    """LitLM's hyperparameters."""
    data: dict[str, Any]
    """The data module's hyperparameters; empty if the run had none."""
    digests: dict[str, str]
    """Digests of the tokens of each split."""
    streaming: dict[str, Any] | None
    """Where the streams of training data were."""
    tokenizer: Tokenizer | None
    """None if the data module of the run had none."""
    weights: dict[str, torch.Tensor]
    """The Transformer's state dict, mapped from the file rather than read."""
    content: dict[str, Any] = field(repr=False)
    """All that is in the file, for the Trainer to resume from."""

    def config(self, *, training: bool, named: Mapping[str, str] = {}) -> dict[str, Any]:
        """The hyperparameters as a config file for the command line, without those that are LEFT_OUT.

        Args:
            training: Whether optimizer and schedule are wanted: they name classes, and only training needs them.
            named: The classes of optimizer, schedule and source that the user's own command names, which are trusted.

        Raises:
            ValueError: if it names a class that is not trusted.
        """
        model = {key: value for key, value in self.model.items() if key not in {*LEFT_OUT["model"], *TRUSTED_CLASSES}}
        data = {key: value for key, value in self.data.items() if key not in LEFT_OUT["data"]}
        if (source := _class_path(data.get("source"))) is not None:
            if source != named.get("source"):
                raise ValueError(_untrusted("data.source", source, "from outside of lit_lm"))
            del data["source"]
        for part in TRUSTED_CLASSES.keys() & self.model.keys() if training else ():
            value = self.model[part]
            spec = {"class_path": value} if isinstance(value, str) else value
            if _is_trusted(part, spec, named.get(part)):
                model[part] = spec
            elif part not in named:
                why = "with arguments that may run code, or from outside of lit_lm and torch"
                raise ValueError(_untrusted(f"model.{part}", _class_path(spec) or spec, why))
        return {"seed": self.model["seed"], "model": model, "data": data}

    def transformer(self) -> Transformer:
        """The model, in evaluation mode on the CPU."""
        model = Transformer(TransformerConfig(**self.model["net"]))
        model.load_state_dict(self.weights)
        return model.eval()

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer of the run.

        Raises:
            ValueError: if it had none.
        """
        if self.tokenizer is None:
            raise ValueError(f"{self.path} has no tokenizer: the data module of its run had none")
        return self.tokenizer


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        FileNotFoundError: if there is no file at `path`.
        ValueError: if it is damaged, holds more than data, or was not written by this version of lit-lm.
    """
    path = Path(path)
    content = _load(path)
    try:
        if "hyper_parameters" in content and content.get("lit_lm_format") != FORMAT:
            version = content.get("lit_lm_version", "0.1.0")
            raise ValueError(f"{path} was written by lit-lm {version}; read it with that version, this one cannot")
        # Lightning keeps the data module's state under the name of its class, which may be the user's own
        state = next((value for value in content.values() if isinstance(value, dict) and "digests" in value), {})
        tokenizer = content["tokenizer"]
        checkpoint = Checkpoint(
            path=path,
            step=content["global_step"],
            model=_public(content["hyper_parameters"]),
            data=_public(content.get("datamodule_hyper_parameters", {})),
            digests=dict(state.get("digests", {})),
            streaming=state.get("streaming"),
            tokenizer=None if tokenizer is None else Tokenizer.from_json(tokenizer),
            weights={
                key.removeprefix("net."): value
                for key, value in content["state_dict"].items()
                if key.startswith("net.")
            },
            content=content,
        )
        _check_plain("model", checkpoint.model)
        _check_plain("data", checkpoint.data)
        TransformerConfig(**checkpoint.model["net"])
        return checkpoint
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} was not written by lit-lm ({type(error).__name__}: {error})") from None


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint and its digest; it appears under its name last, when both are whole and on the disk.

    Raises:
        OSError, RuntimeError: if it cannot be written; nothing is left behind then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with write_whole(path) as file:
            torch.save(content, file)
            file.flush()
            write_text(digest_file(path), f"{sha256(Path(file.name))}  {path.name}\n")
    except BaseException:
        if not path.exists():
            digest_file(path).unlink(missing_ok=True)
        raise


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


def _class_path(spec: Any) -> Any:
    """The class that a value of a config names; None if it names none."""
    return spec.get("class_path") if isinstance(spec, Mapping) else None


def _untrusted(option: str, name: Any, why: str) -> str:
    return (
        f"the checkpoint names {name} as its {option}, {why}; it is used only if you name it yourself: "
        f"--{option} {name}"
    )


def _check_plain(part: str, values: Mapping[str, Any]) -> None:
    """Refuse hyperparameters that are not plain values.

    Optimizer, schedule and a source that is a class are for `Checkpoint.config` to check.

    Raises:
        ValueError: naming one.
    """
    for name, value in values.items():
        checked_later = name in TRUSTED_CLASSES if part == "model" else name == "source" and _class_path(value)
        if checked_later:
            continue
        for key, item in _items(part, name, value):
            if not _is_plain(item, number=name == "source" and key != ""):
                place = ".".join(filter(None, (part, str(name), str(key))))
                raise ValueError(f"the checkpoint's {place} is {str(item)[:80]!r}, which is not a plain value of it")


def _items(part: str, name: str, value: Any) -> list[tuple[str, Any]]:
    """The values of a hyperparameter that is a mapping, which are the Transformer's shape and sources with weights."""
    if (part, name) == ("model", "net") and isinstance(value, Mapping):
        known = {each.name for each in fields(TransformerConfig)}
        return [(str(key), item if key in known else value) for key, item in value.items()]  # a mapping is not plain
    if (part, name) == ("data", "source") and isinstance(value, Mapping):
        return [(str(key), item) for key, item in value.items()]
    return [("", value)]


def _is_plain(value: Any, *, number: bool = False) -> bool:
    return type(value) in (int, float) if number else value is None or type(value) in (bool, int, float, str)


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    digest = digest_file(path.resolve())
    if digest.is_file() and digest.read_text(encoding="ascii", errors="replace").split()[:1] != [sha256(path)]:
        raise ValueError(f"{path} is damaged: it does not match its digest")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # type: ignore[no-any-return]
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError and others for a bad file
        if match := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(f"{path} is refused: it would run {match[1]}, and a checkpoint is only data") from None
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} cannot be read as a checkpoint, it is damaged or not one ({reason})") from None


def digest_file(path: Path) -> Path:
    """Where the SHA-256 digest of a checkpoint's file is kept, in the form of sha256sum."""
    return path.with_name(f"{path.name}.sha256")


def _public(hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """Without what Lightning adds for itself."""
    return {key: value for key, value in dict(hyperparameters).items() if not key.startswith("_")}
