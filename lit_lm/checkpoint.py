"""The content of a checkpoint; writing one atomically; reading one safely.

A checkpoint is the Trainer's file and is self-contained: besides the weights and the state of the optimizer, it has the
hyperparameters of model and data as plain values, and the tokenizer. Its digest is in a file next to it, which
`sha256sum -c` can check. A checkpoint is only data: it is read with `weights_only`, which allows tensors and plain
values and runs no code, and all of it is checked with `lit_lm.checkpoint_schema`. Of the classes that it names, only
TRUSTED_CLASSES, and those that the user's command line names too, are imported, with only numbers and words as
arguments.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import torch

from lit_lm.checkpoint_schema import CONTROL, PLAIN, is_single, problems, quoted
from lit_lm.files import sha256, write_text, write_whole
from lit_lm.model.config import TransformerConfig
from lit_lm.model.transformer import Transformer
from lit_lm.tokenizer.tokenizer import Tokenizer

FORMAT = 2
"""Version of the content of a checkpoint; other versions are refused."""

MAX_SHOWN = 5
"""Maximum number of problems of a checkpoint in an error message."""

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
"""Classes that a checkpoint may name: they are harmless with any numbers as arguments. Classes that take a function or
build other classes are excluded.
"""

LEFT_OUT = {"model": {"seed"}, "data": {"seed", "context_length", "vocab_size", "cache_dir"}}
"""Hyperparameters that a command does not take from a checkpoint: they are linked to others, or, like the folder to
write to, chosen by the user.
"""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint."""

    path: Path
    step: int
    """Number of completed optimizer steps."""
    model: dict[str, Any]
    """Hyperparameters of LitLM."""
    data: dict[str, Any]
    """Hyperparameters of the data module; empty if it has none."""
    digests: dict[str, str]
    """Digests of the tokens of each split."""
    streaming: dict[str, Any] | None
    """State of the streams of training data; None if the run did not stream."""
    tokenizer: Tokenizer | None
    """None if the data module of the run had none."""
    weights: dict[str, torch.Tensor]
    """State dict of the Transformer, memory-mapped from the file."""
    own_classes: dict[str, str]
    """Classes of the user's own in place of LitLM (model_class) and LMDataModule (data_class)."""
    chat_template: str | None
    """Template in Jinja that makes a prompt of the messages of a chat; None if the model is not for chats."""
    content: dict[str, Any] = field(repr=False)
    """Everything in the file, for the Trainer to resume from."""

    def config(self, *, training: bool, named: Mapping[str, str] = {}) -> dict[str, Any]:
        """The hyperparameters as a config for the command line, without LEFT_OUT.

        Args:
            training: Whether to include optimizer and schedule, which name classes and are needed only in training.
            named: Classes of optimizer, schedule and source named on the user's command line, which are trusted.

        Raises:
            ValueError: if the checkpoint names a class that is not trusted.
        """
        model = {key: value for key, value in self.model.items() if key not in {*LEFT_OUT["model"], *TRUSTED_CLASSES}}
        data = {key: value for key, value in self.data.items() if key not in LEFT_OUT["data"]}
        if (source := _class_path(data.get("source"))) is not None:
            if source != named.get("source"):
                raise ValueError(
                    f"the checkpoint names {quoted(source)} as its data.source, which is not trusted; to use it, "
                    "pass the same --data.source as when the run began"
                )
            del data["source"]
        for part in TRUSTED_CLASSES.keys() & (self.model.keys() if training else set()):
            value = self.model[part]
            spec = {"class_path": value} if isinstance(value, str) else value
            if _is_trusted(part, spec, named.get(part)):
                model[part] = spec
            elif part not in named:
                why = "which is not trusted, or has arguments that may run code"
                name = spec if (path := _class_path(spec)) is None else path
                raise ValueError(_untrusted(f"model.{part}", quoted(name), why))
        return {"seed": self.model["seed"], "model": model, "data": data}

    def transformer(self) -> Transformer:
        """The model, in evaluation mode on the CPU.

        Raises:
            ValueError: if the weights of the user's own model are not those of a Transformer.
        """
        model = Transformer(TransformerConfig(**self.model["net"]))
        try:
            model.load_state_dict(self.weights)
        except RuntimeError:
            raise ValueError(f"{self.path} has other weights than a Transformer of its config") from None
        return model.eval()

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer of the run.

        Raises:
            ValueError: if there is none.
        """
        if self.tokenizer is None:
            raise ValueError(f"{self.path} has no tokenizer: the data module of its run had none")
        return self.tokenizer


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        FileNotFoundError: if there is no file at `path`.
        ValueError: if it is damaged, contains more than data, or was not written by this version of lit-lm.
    """
    path = Path(path)
    content = _load(path)
    if not isinstance(content, dict) or "hyper_parameters" not in content:
        raise ValueError(f"{path} was not written by lit-lm: it has no hyper_parameters")
    if not is_single(content.get("lit_lm_format"), range(FORMAT, FORMAT + 1)):
        other = quoted(content.get("lit_lm_version", "0.1.0"))
        raise ValueError(f"{path} was written by lit-lm {other}; this version cannot read it; use that one")
    if found := problems(content):
        more = f"; and {len(found) - MAX_SHOWN} more" if len(found) > MAX_SHOWN else ""
        raise ValueError(f"{path} is damaged or was changed: {'; '.join(found[:MAX_SHOWN])}{more}")
    model = _public(content["hyper_parameters"])
    model["net"] = asdict(TransformerConfig(**model["net"]))  # with the defaults of fields that are newer than the file
    # Lightning stores the data module's state under the name of its class, which may be a user's class
    state = next((value for value in content.values() if isinstance(value, dict) and "digests" in value), {})
    own_classes = {option: content.get(option) for option in ("model_class", "data_class")}
    return Checkpoint(
        path=path,
        step=content["global_step"],
        model=model,
        data=_public(content.get("datamodule_hyper_parameters", {})),
        digests=dict(state.get("digests", {})),
        streaming=state.get("streaming"),
        tokenizer=_tokenizer(path, content["tokenizer"], model["net"]["vocab_size"]),
        weights={
            key.removeprefix("net."): value for key, value in content["state_dict"].items() if key.startswith("net.")
        },
        own_classes={option: name for option, name in own_classes.items() if name is not None},
        chat_template=_chat_template(path, content.get("chat_template")),
        content=content,
    )


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint and its digest.

    Raises:
        OSError: if it cannot be written; no unfinished files remain.
    """
    written = hashlib.sha256()
    with checkpoint_file(path, lambda _: written.hexdigest()) as file:
        torch.save(content, _HashedFile(file, written))  # type: ignore[arg-type]


class _HashedFile:
    """Hashes what is written to a file, so that it need not be read again."""

    def __init__(self, file: IO[bytes], written: "hashlib._Hash") -> None:
        self.file, self.written = file, written

    def write(self, data: bytes) -> int:
        self.written.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


@contextmanager
def checkpoint_file(path: Path, digest_of: Callable[[Path], str] = sha256) -> Iterator[IO[bytes]]:
    """Open a file for a checkpoint. When the block ends, it appears under its name, and then its digest is written.

    Between the two, it has no digest. If it replaces a file, that one must not be left with the digest of this one.

    Args:
        path: Name of the checkpoint.
        digest_of: Returns the digest of the file; the default reads it.

    Raises:
        OSError: if it cannot be written; no unfinished files remain.
    """
    path = path.resolve()  # a link's digest is beside its target, where it is read
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with write_whole(path) as file:
            yield file
            file.flush()
            digest = digest_of(Path(file.name))
            digest_file(path).unlink(missing_ok=True)
        write_text(digest_file(path), f"{digest}  {path.name}\n")
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # of torch's writer
            raise OSError(f"{path} cannot be written: {error.__context__}") from None
        raise


def weights_content(
    config: TransformerConfig,
    weights: Mapping[str, torch.Tensor],
    tokenizer: Tokenizer,
    chat_template: str | None = None,
) -> dict[str, Any]:
    """The content of a checkpoint that no run wrote: a model and its tokenizer, at step 0."""
    return {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": version("lightning"),
        "state_dict": {f"net.{name}": weight for name, weight in weights.items()},
        "hyper_parameters": {"net": asdict(config), "document_mask": False, "seed": 0},
        "tokenizer": tokenizer.to_json(),
        "chat_template": chat_template,
        "lit_lm_format": FORMAT,
        "lit_lm_version": version("lit-lm"),
        "skipped_steps": [0, 0],
        "unread_steps": [],
    }


def _is_trusted(part: str, spec: Any, named: str | None) -> bool:
    """Whether a checkpoint's class is listed or named by the user, and has only harmless arguments."""
    if not isinstance(spec, Mapping) or not spec.keys() <= {"class_path", "init_args"}:
        return False
    arguments = {} if spec.get("init_args") is None else spec["init_args"]
    return (
        isinstance(spec.get("class_path"), str)
        and (spec["class_path"] in TRUSTED_CLASSES[part] or spec["class_path"] == named)
        and isinstance(arguments, Mapping)
        and all(isinstance(key, str) and key.isidentifier() and _is_harmless(arguments[key]) for key in arguments)
    )


def _is_harmless(value: Any) -> bool:
    """Whether an argument is a number, a word or a list of numbers, none of which can name code."""
    if isinstance(value, list | tuple):
        return all(is_single(item, bool | int | float) for item in value)
    return is_single(value, PLAIN) and (not isinstance(value, str) or value.isidentifier())


def _class_path(spec: Any) -> Any:
    """The class_path of a config value; None if it has none."""
    return spec.get("class_path") if isinstance(spec, Mapping) else None


def _untrusted(option: str, name: str, why: str) -> str:
    return (
        f"the checkpoint names {name} as its {option}, {why}; to use it, name it on the command line: --{option} {name}"
    )


def _tokenizer(path: Path, text: Any, vocab_size: int) -> Tokenizer | None:
    """The tokenizer.

    Raises:
        ValueError: if it is invalid, or has ids that the model does not have.
    """
    if text is None:
        return None
    try:
        tokenizer = Tokenizer.from_json(text)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} has a tokenizer that cannot be used: {CONTROL.sub(' ', str(error))}") from None
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(f"{path} has a tokenizer of {tokenizer.vocab_size} tokens, but vocab_size is {vocab_size}")
    return tokenizer


def _chat_template(path: Path, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{path} is damaged or was changed: chat_template is {quoted(value)}")
    return value


def _load(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    digest = digest_file(path.resolve())
    if digest.is_file() and digest.read_text(encoding="ascii", errors="replace").split()[:1] != [sha256(path)]:
        raise ValueError(f"{path} is damaged: it does not match its digest")
    return load_data(path)


def load_data(path: Path) -> Any:
    """Load what `torch.save` wrote, with tensors mapped from the file. Runs no code.

    Raises:
        ValueError: if the file is damaged or contains more than data.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError and others for a bad file
        if match := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(f"{path} is refused: it would run {match[1]}, but a checkpoint is only data") from None
        reason = CONTROL.sub(" ", str(error).strip().partition("\n")[0]) or type(error).__name__
        raise ValueError(f"{path} cannot be read as a checkpoint; it is damaged or not one ({reason})") from None


def digest_file(path: Path) -> Path:
    """File with the SHA-256 digest of a checkpoint, in the format of sha256sum."""
    return path.with_name(f"{path.name}.sha256")


def _public(hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """Hyperparameters without those that Lightning adds."""
    return {key: value for key, value in dict(hyperparameters).items() if not key.startswith("_")}
