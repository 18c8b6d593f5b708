"""Training from Python: what `lit-lm fit` does, with the same options."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback

from lit_lm.cli.base import quieten_libraries
from lit_lm.cli.fit import FitCLI
from lit_lm.files import write_text
from lit_lm.training.hardware import flush_denormals
from lit_lm.training.run import Run

INTERRUPTED = 130
"""Exit code of `fit` after Ctrl-C."""


@dataclass(frozen=True)
class Config:
    """All options of `lit-lm fit`, complete with the defaults, as `--print_config` prints them."""

    options: Mapping[str, Any]
    """Values by section and name: seed, name, model, data, trainer, ..."""

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read a config file, or a recipe by its name.

        Raises:
            ValueError, OSError: if it cannot be read, or an option is unknown or invalid.
        """
        return cls(_parsed([f"--config={path}"]))

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> Self:
        """Complete some options with the defaults.

        Raises:
            ValueError: if an option is unknown or invalid.
        """
        return cls(_parsed([f"--config={json.dumps(_plain(options))}"]))

    def update(self, **options: Any) -> Self:
        """Change some options; see `train` for their form.

        Raises:
            ValueError: if an option is unknown or invalid.
        """
        return type(self)(_parsed([f"--config={json.dumps(self.options)}", *_arguments(options)]))

    def to_dict(self) -> dict[str, Any]:
        """The options as nested dictionaries."""
        copied: dict[str, Any] = json.loads(json.dumps(self.options))
        return copied

    def to_yaml(self, path: str | Path) -> None:
        """Write a config file for `lit-lm fit --config`."""
        write_text(Path(path), yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True))


def train(
    config: Config | Mapping[str, Any] | str | Path = "quick", *, callbacks: Sequence[Callback] = (), **options: Any
) -> Run:
    """Train a model as `lit-lm fit` does, and return the run: its folder, curves and checkpoints.

    >>> run = train("quick", name="wide", model={"net": {"d_model": 192}}, trainer={"max_steps": 100})

    Args:
        config: A config file, the name of a recipe, a mapping of options, or a `Config`.
        callbacks: Callbacks of Lightning in addition to those of the config.
        options: Options of `lit-lm fit` that override the config, as nested mappings or with dotted names. A class may
            be the class itself.

    Raises:
        ValueError, OSError: if an option, or a file that it names, is invalid.
        KeyboardInterrupt: if the run was interrupted, after it has been saved; `ckpt_path="last"` resumes it.
    """
    text = str(config) if isinstance(config, str | Path) else json.dumps(_plain(_options_of(config)))
    quieten_libraries(())
    flush_denormals()
    try:
        cli = _TrainCLI([f"--config={text}", *_arguments(options)], callbacks)
    except SystemExit as stopped:
        if stopped.code == INTERRUPTED:
            raise KeyboardInterrupt from None
        raise
    except MisconfigurationException as error:  # of a Trainer that cannot be built
        raise ValueError(str(error)) from None
    assert cli.model.run.folder is not None
    return Run(cli.model.run.folder)


class _TrainCLI(FitCLI):
    def __init__(self, args: Sequence[str], callbacks: Sequence[Callback]) -> None:
        self.more_callbacks = callbacks
        super().__init__("fit", args, "", run=True)


class _ParseCLI(FitCLI):
    """Parses and checks options, and builds nothing."""

    def __init__(self, args: Sequence[str]) -> None:
        super().__init__("fit", args, "", run=False)

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def after_instantiate_classes(self) -> None:
        """Nothing was built."""

    def _set_seed(self) -> None:
        """Nothing is random."""


def _parsed(args: Sequence[str]) -> dict[str, Any]:
    quieten_libraries(args)
    cli = _ParseCLI(args)
    options: dict[str, Any] = yaml.safe_load(cli.own_parser.dump(cli.options, skip_none=False))
    return options


def _options_of(config: Config | Mapping[str, Any]) -> Mapping[str, Any]:
    return config.options if isinstance(config, Config) else config


def _arguments(options: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Options as command-line arguments. A mapping is a section, unless it names a class or sources with weights."""
    for name, value in options.items():
        full = f"{prefix}{name}"
        if isinstance(value, Mapping) and "class_path" not in value and full != "data.source":
            yield from _arguments(value, f"{full}.")
        else:
            plain = _plain(value)
            yield f"--{full}={plain if isinstance(plain, str) else json.dumps(plain)}"


def _plain(value: Any) -> Any:
    """A value as JSON: a class becomes its dotted name, also if it was defined in a notebook."""
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
