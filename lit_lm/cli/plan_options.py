"""The values of the options of `lit-lm fit` for `lit-lm plan`.

Values are checked if they are numbers, true, false or a choice of words; a class is looked up only in lit_lm.optim and
torch.optim.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from lit_lm.cli.config import full_name, load_yaml, parse_yaml, read_given
from lit_lm.cli.known_options import OWNERS, known_options
from lit_lm.cli.mistakes import (
    KINDS,
    unexpected_argument,
    unknown_class,
    unknown_option,
    unknown_parameter,
    wrong_choice,
    wrong_kind,
)
from lit_lm.cli.options import with_values

CLASSES = {"model.optimizer": "Muon", "model.schedule": "WarmupStableDecay", "trainer.strategy": "auto"}
"""Options that choose a class, and their defaults; Lightning's strategies also have names."""


class Options:
    """The values of a command line and its configs, as `lit-lm fit` takes them."""

    def __init__(self, args: Sequence[str]) -> None:
        """
        Args:
            args: Arguments of `lit-lm fit`.

        Raises:
            ValueError, OSError: listing all problems, a line each.
        """
        self.known = known_options()
        self.values: dict[str, Any] = {}
        self.problems: list[str] = []
        bools = {f"--{name}" for name, parameter in self.known.items() if "bool" in parameter.kinds}
        waiting = iter(with_values(read_given(args).args, bools, positionals=False))
        for arg in waiting:
            name, equals, text = arg.partition("=")
            if not name.startswith("--"):
                self.problems.append(unexpected_argument(arg))
            elif name == "--config":
                self._add("", json.loads(text), in_config=True)
            else:
                self._add(name.removeprefix("--"), _parsed(name, text if equals else next(waiting, "")))
        if self.problems:
            raise ValueError("\n".join(self.problems))

    def __getitem__(self, name: str) -> Any:
        """The value of an option, or its default."""
        return self.values.get(name, self.known[name].default)

    def group(self, group: str) -> dict[str, Any]:
        """The values of all options of a group, with the defaults."""
        names = [name for name in self.known if name.rpartition(".")[0] == group]
        return {name.rpartition(".")[2]: self[name] for name in names}

    def class_name(self, name: str) -> str:
        """Name of the class that an option chooses."""
        return str(self.values.get(name) or CLASSES[name]).rpartition(".")[2]

    def _add(self, name: str, value: Any, *, in_config: bool = False) -> None:
        """Set an option, or the options of a group."""
        owner = next((option for option in CLASSES if name.startswith(f"{option}.")), None)
        if name in CLASSES:
            self._choose(name, value)
        elif owner is not None:
            self._add_argument(owner, name.removeprefix(f"{owner}.").removeprefix("init_args."), value)
        elif isinstance(value, Mapping) and (not name or any(known.startswith(f"{name}.") for known in self.known)):
            for key, part in value.items():
                self._add(f"{name}.{key}" if name else str(key), part, in_config=in_config)
        elif (name == "model.net" or name in OWNERS) and isinstance(value, str):
            self._add(name, load_yaml(Path(value)))
        elif name in self.known:
            self._set(name, value)
        elif not self._is_below(name):
            self.problems.append(unknown_option(name, list(self.known), in_config=in_config))

    def _is_below(self, name: str) -> bool:
        """Whether an option belongs to a value that is a class of the user's or of Lightning's."""
        group = name.partition(".")[0]
        if self.values.get(f"{group}_class") is not None:
            return True
        above = ".".join(name.split(".")[:2])
        return above != name and above in self.known and not self.known[above].kinds and above != "model.net"

    def _set(self, name: str, value: Any) -> None:
        kinds, choices = self.known[name].kinds, self.known[name].choices
        fits = {"int": type(value) is int, "bool": type(value) is bool, "None": value is None}
        fits["float"] = type(value) in (int, float)
        if kinds and not any(fits[kind] for kind in kinds):
            names = {"int": "int", "float": "float", "bool": "bool", "None": "NoneType"}
            listed = [
                KINDS[names[kind]] for kind in names if kind in kinds and not (kind == "int" and "float" in kinds)
            ]
            self.problems.append(wrong_kind(name, str(value), " or ".join(listed)))
        elif choices and value not in choices:
            self.problems.append(wrong_choice(name, str(value), choices))
        else:
            self.values[name] = value

    def _choose(self, name: str, value: Any) -> None:
        """Set the class of an option, given by its name or with its arguments."""
        given = value if isinstance(value, Mapping) else {"class_path": value}
        chosen = given.get("class_path")
        arguments = given.get("init_args", given if chosen is None else {}) or {}
        if not isinstance(arguments, Mapping):
            self.problems.append(f"{name}.init_args is {arguments}; it must be a mapping")
            return
        if chosen is not None:
            self.values[name] = full_name(str(chosen))
            if "." not in self.values[name] and name != "trainer.strategy":
                self.problems.append(unknown_class(name.rpartition(".")[2], str(chosen)))
        for argument in arguments:
            self._add_argument(name, str(argument), arguments[argument])

    def _add_argument(self, option: str, argument: str, value: Any) -> None:
        """Set an argument of the class that an option chooses."""
        path = full_name(str(self.values.get(option) or CLASSES[option]))
        module, _, kind = path.rpartition(".")
        if module in ("lit_lm.optim", "torch.optim", "torch.optim.lr_scheduler"):
            owner = getattr(import_module(module), kind, None)
            if not isinstance(owner, type):
                self.problems.append(unknown_class(option.rpartition(".")[2], kind))
            elif argument not in inspect.signature(owner).parameters:
                self.problems.append(unknown_parameter(argument, path))
        self.values[f"{option}.{argument}"] = value


def _parsed(name: str, text: str) -> Any:
    """The value of an option on the command line."""
    return text if name in ("--data.source", "--data.tokenizer") else parse_yaml(text, name)
