"""Preprocessing of config files and the command line for the parser.

Config files are read here, not by the parser. So options override configs in any order, short names of lit-lm's own
classes work in both, relative paths in a config are relative to its file, and the options given by the user are known.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from lit_lm.cli.recipes import find_config
from lit_lm.data.find_tokenizer import absolute_tokenizer
from lit_lm.data.sources import absolute

MAX_CONFIG_BYTES = 2**20
MAX_VALUES = 100_000
"""Maximum number of values in a config: with aliases, a small file can expand to more than fits in memory."""
CLASS_OPTIONS = ("--model.optimizer", "--model.schedule", "--model", "--data")
PATH_OPTIONS = ("--data.source", "--data.val_source", "--data.tokenizer")
READ_HERE = {
    *("-c", "--config", "--device", "--model.net", "--model_class", "--data_class", "--trainer", "--trainer.strategy"),
    *CLASS_OPTIONS,
    *PATH_OPTIONS,
}
"""Options whose values are not passed to the parser as they are."""
DOTTED_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML loader with the floats of YAML 1.2, in which 1e-3 is a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"(?:[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"),
    list("-+0123456789."),
)


# jsonargparse dumps defaults such as that of Timer's `interval`, a string enum
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))


@dataclass(frozen=True)
class Given:
    """The user's command line and configs."""

    args: list[str]
    """Arguments for the parser: first the configs, inline, then the options."""
    names: set[str]
    """Dotted names of the options that the user gave."""


def read_given(args: Sequence[str]) -> Given:
    """Convert command-line arguments to the form that the parser takes.

    Raises:
        ValueError, OSError: if a config cannot be read or is not a mapping.
    """
    configs: list[str] = []
    chosen: list[str] = []
    options: list[str] = []
    names: set[str] = set()
    remaining = iter(args)
    for arg in remaining:
        name, equals, value = arg.partition("=")
        read_here = name in READ_HERE or (name.startswith("-") and name.endswith(".help"))
        if read_here:
            value = value if equals else next(remaining, "")
        if name in ("-c", "--config"):
            content = read_config(value)
            names |= set(_leaves(content))
            try:
                configs.append(f"--config={json.dumps(content, default=str)}")  # a date is only text here
            except (TypeError, ValueError) as error:  # a key that is a list, or a value that contains itself
                raise ValueError(f"{value or '--config'} is not a config: {error}") from None
            continue
        is_class_option = name in CLASS_OPTIONS
        if read_here:
            name, value = _resolved(name, value)
            arg = name if name.endswith(".help") and not value else f"{name}={value}"
        path = value or arg
        if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
            raise ValueError(f"{path} is a pipe or a device; pass the path of a file")  # reading it may never end
        (chosen if is_class_option else options).append(arg)  # a change of class resets the options of the class
        if name.startswith("-"):  # else it is a value
            names.add(name.removeprefix("--"))
    return Given([*configs, *chosen, *options], names)


def read_config(text: str) -> dict[str, Any]:
    """Read a config file, or an inline mapping, and make class names full and paths absolute.

    Raises:
        ValueError, OSError: if it cannot be read or is not a mapping.
    """
    if _is_inline(text):
        content, where, folder = parse_yaml(text, "--config"), "--config", Path()
    else:
        path = find_config(text)
        content, where, folder = load_yaml(path), str(path), path.parent
    if not isinstance(content, dict):
        raise ValueError(f"{where} is not a config: it contains {type(content).__name__}, not a mapping of options")
    for name in ("model", "data", "trainer", "checkpoint", "console", "samples"):
        if not isinstance(section := content.get(name, {}), dict | str):
            raise ValueError(f"{where}: {name} is {type(section).__name__}; it must be a mapping of options")
    model, data = content.get("model"), content.get("data")
    if isinstance(model, dict):
        for name in ("optimizer", "schedule"):
            if isinstance(model.get(name), str):
                model[name] = full_name(model[name])
            elif isinstance(model.get(name), dict) and isinstance(model[name].get("class_path"), str):
                model[name]["class_path"] = full_name(model[name]["class_path"])
        if isinstance(model.get("net"), str):
            model["net"] = load_yaml(find_config(model["net"], folder))
    if isinstance(data, dict):
        _make_absolute(data, folder)
    trainer = content.get("trainer")
    if isinstance(trainer, dict) and isinstance(strategy := trainer.get("strategy"), str) and _is_class(strategy):
        trainer["strategy"] = _strategy(strategy)
    return content


def full_name(name: str) -> str:
    """The class_path of an optimizer or schedule of lit-lm given by its short name; other names are unchanged."""
    if not name[:1].isupper() or "." in name:
        return name
    from lit_lm.optim import __all__ as own_classes  # imports torch, which takes a second

    return f"lit_lm.optim.{name}" if name in own_classes else name


def make_data_absolute(data: Any) -> None:
    """Make the paths in the parsed options `data` absolute.

    Raises:
        ValueError: if a source is named twice.
    """
    sources = data.source
    if isinstance(sources, dict) and "class_path" not in sources:
        data.source = {absolute(name): weight for name, weight in sources.items()}
        if len(data.source) < len(sources):
            raise ValueError(f"data.source names the same source twice: {', '.join(sources)}")
    elif isinstance(sources, str):
        data.source = absolute(sources)
    if data.val_source is not None:
        data.val_source = absolute(data.val_source)
    if data.tokenizer is not None:
        data.tokenizer = absolute_tokenizer(data.tokenizer)


def _resolved(name: str, value: str) -> tuple[str, str]:
    """An option that is read here and its value, as the parser takes them."""
    if name == "--device":
        return "--trainer.accelerator", value
    if name in ("--model", "--data"):
        return (f"{name}_class" if _is_class(value) else name), value
    if name == "--trainer.strategy" and _is_class(value):
        return name, json.dumps(_strategy(value))
    if name in PATH_OPTIONS:
        return name, _absolute(name, value)
    if name in ("--model.net", "--trainer"):
        return name, value if _is_inline(value) else str(find_config(value))
    return name, full_name(value)


def _strategy(class_path: str) -> dict[str, str]:
    """A strategy given by its class. Lightning takes a string for the name of one of its own."""
    return {"class_path": class_path}


def _is_inline(text: str) -> bool:
    return text.lstrip().startswith("{")


def _is_class(value: str) -> bool:
    return DOTTED_NAME.fullmatch(value) is not None and not Path(value).exists()


def _absolute(option: str, value: str) -> str:
    """A path on the command line made absolute, so that a config printed from it can be kept anywhere."""
    if not value or _is_inline(value) or value == "null":
        return value
    return absolute_tokenizer(value) if option == "--data.tokenizer" else absolute(value)


def _make_absolute(data: dict[str, Any], folder: Path) -> None:
    """Make the paths in the `data` section of a config absolute; relative ones are relative to `folder`."""
    for name in ("source", "val_source"):
        value = data.get(name)
        if isinstance(value, str):
            data[name] = absolute(value, folder)
        elif isinstance(value, dict) and "class_path" not in value:
            data[name] = {absolute(str(source), folder): weight for source, weight in value.items()}
    if isinstance(data.get("tokenizer"), str):
        data["tokenizer"] = absolute_tokenizer(data["tokenizer"], folder)


def load_yaml(path: Path) -> Any:
    """Read a YAML file of limited size.

    Raises:
        ValueError, OSError: if it cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file; a config is a YAML file")
    with open(path, "rb") as file:
        text = file.read(MAX_CONFIG_BYTES + 1)
    if len(text) > MAX_CONFIG_BYTES:
        raise ValueError(f"{path} has more than {MAX_CONFIG_BYTES:,} bytes; it cannot be a config")
    try:
        return parse_yaml(text.decode(), str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: byte {error.start} is 0x{text[error.start]:02x}") from None


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML that comes from `where`.

    Raises:
        ValueError: if it is not YAML, or has too many values.
    """
    try:
        content = yaml.load(text, _Loader)
        if sum(1 for _ in _values(content, MAX_VALUES)) >= MAX_VALUES:
            raise ValueError(f"{where} has more than {MAX_VALUES:,} values; it cannot be a config")
        return content
    except (yaml.YAMLError, RecursionError) as error:
        reason = str(error).replace("\n", " ") if isinstance(error, yaml.YAMLError) else "it is nested too deeply"
        raise ValueError(f"{where} is not YAML: {reason}") from None


def _values(content: Any, limit: int) -> Iterator[Any]:
    """All values in nested mappings and lists, at most `limit`. An alias counts every time it occurs."""
    waiting = [content]
    while waiting and limit > 0:
        value = waiting.pop()
        limit -= 1
        yield value
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of all options in a config, including groups."""
    for name, value in content.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
