"""The arguments of a LitLM as plain values, and what of them a checkpoint can contain."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule

from lit_lm.checkpoint_schema import hyperparameter_problems
from lit_lm.model.config import TransformerConfig


def plain_values(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a LitLM as plain values; those from the command line are plain already.

    A class, or a `functools.partial` of a class with plain arguments, becomes class_path and init_args; any other
    callable is omitted.
    """
    plain = dict(hyperparameters)
    if isinstance(plain["net"], TransformerConfig):
        plain["net"] = asdict(plain["net"])
    for name, value in list(plain.items()):
        if callable(value) and (spec := _class_spec(value)) is not None:
            plain[name] = spec
    return {name: value for name, value in plain.items() if not callable(value)}


def own_classes(module: LightningModule, data: LightningDataModule | None) -> dict[str, str | None]:
    """Names of the classes of model and data module that are a user's own, as a checkpoint contains them."""
    names: dict[str, str | None] = {}
    for option, part in (("model_class", module), ("data_class", data)):
        kind = type(part)
        own = part is not None and not kind.__module__.startswith("lit_lm.")
        names[option] = f"{kind.__module__}.{kind.__name__}" if own else None
    return names


def check_storable(plain: Mapping[str, Any], module: LightningModule, data: LightningDataModule | None) -> None:
    """Check that a checkpoint can contain the arguments of model and data module.

    Args:
        plain: Arguments of the model, by `plain_values`.
        module: The model.
        data: The data module, if there is one.

    Raises:
        ValueError: listing those that it cannot contain.
    """
    content = {**own_classes(module, data), "hyper_parameters": plain}
    if hparams := getattr(data, "hparams", None):
        content["datamodule_hyper_parameters"] = dict(hparams)
    if problems := list(hyperparameter_problems(content)):
        problems.append("a checkpoint can contain numbers, lines of text, and lists of these")
        raise ValueError("\n".join(problems))


def _class_spec(given: Any) -> Mapping[str, Any] | None:
    """class_path and init_args of a class, or of a partial of one with plain arguments; None for anything else."""
    kind, arguments = (given.func, given.keywords) if isinstance(given, partial) and not given.args else (given, {})
    if not isinstance(kind, type) or any(callable(value) for value in arguments.values()):
        return None
    module, package = kind.__module__, kind.__module__.rpartition(".")[0]
    if package in ("lit_lm.optim", "torch.optim") and module != "torch.optim.lr_scheduler":
        module = package  # the public path
    return {"class_path": f"{module}.{kind.__qualname__}", "init_args": dict(arguments)}
