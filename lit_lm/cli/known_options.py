"""The options of `lit-lm fit`, without its parser, which takes seconds to build.

The options, their kinds and their defaults are read from the source of the classes that own them, without importing
them.
"""

import ast
import re
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, get_args

from lit_lm.data.ids import BinDtype
from lit_lm.data.order import WindowOrder
from lit_lm.model.config import TransformerConfig
from lit_lm.tokenizer.train import TokenizerType

ROOT = Path(__file__).parents[1]
OWNERS = {
    "model": ("training/module.py", "LitLM"),
    "data": ("data/windowed.py", "WindowedData"),
    "checkpoint": ("training/checkpointing.py", "CheckpointCallback"),
    "console": ("training/console.py", "Console"),
    "samples": ("training/samples.py", "Samples"),
    "trainer": ("pytorch/trainer/trainer.py", "Trainer"),
}
"""File and class of each group of options; the Trainer's is in Lightning."""
SINGLE = {
    **dict.fromkeys(("name", "ckpt_path", "init_from", "model_class", "data_class"), ""),
    "seed": "int",
    "allow_changes": "bool",
    "allow_fetch": "bool",
}
"""Options of `fit` outside of the groups, with the names of the types that are checked; plan uses none of them."""
CHOICES = {
    "BinDtype": get_args(BinDtype),
    "TokenizerType": get_args(TokenizerType),
    "WindowOrder": get_args(WindowOrder),
}
"""Values of the types in annotations that allow a few words."""


class Parameter(NamedTuple):
    """A parameter of a constructor."""

    kinds: frozenset[str]
    """Names of the types in its annotation; empty: its value is not checked."""
    default: Any
    choices: tuple[str, ...] = ()
    """The words that it may be; empty: any."""


def parameters(path: Path, name: str) -> dict[str, Parameter]:
    """The parameters of the constructor of class `name`, read from its source."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    (owner,) = [node for node in body if isinstance(node, ast.ClassDef) and node.name == name]
    (init,) = [node for node in owner.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    given = init.args.args[1:] + init.args.kwonlyargs
    without = [None] * (len(init.args.args) - 1 - len(init.args.defaults))
    defaults = [*without, *init.args.defaults, *init.args.kw_defaults]
    hints = ["" if arg.annotation is None else ast.unparse(arg.annotation) for arg in given]
    return {
        arg.arg: Parameter(_kinds(hint), _value(value), CHOICES.get(hint, ()))
        for arg, hint, value in zip(given, hints, defaults, strict=True)
    }


def _kinds(annotation: str) -> frozenset[str]:
    names = set(re.findall(r"\w+", annotation)) - {"Union"}
    if "Optional" in names:
        names = names - {"Optional"} | {"None"}
    return frozenset(names) if names <= {"int", "float", "bool", "None"} else frozenset()


def _value(default: ast.expr | None) -> Any:
    try:
        return None if default is None else ast.literal_eval(default)
    except ValueError:  # a default that is computed
        return None


def known_options() -> dict[str, Parameter]:
    """The options of `fit` by their dotted names."""
    lightning = Path(next(iter(find_spec("lightning").submodule_search_locations)))  # type: ignore[arg-type, union-attr]
    known = {name: Parameter(_kinds(hint), None) for name, hint in SINGLE.items()}
    for group, (file, name) in OWNERS.items():
        path = (lightning if group == "trainer" else ROOT) / file
        known |= {f"{group}.{option}": parameter for option, parameter in parameters(path, name).items()}
    for field in fields(TransformerConfig):
        hint = getattr(field.type, "__name__", str(field.type))
        known[f"model.net.{field.name}"] = Parameter(_kinds(hint), field.default)
    return known
