"""The options of the commands that prepare and inspect data, and what they print.

`lines_alone` does without torch and Lightning, whose imports take seconds. Only they can check the options that these
commands accept but do not use (optimizer, schedule, Trainer); options that are like those of a recipe need no check.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace, set_parsing_settings  # type: ignore[attr-defined]

from lit_lm.cli.config import make_data_absolute, read_config, read_given
from lit_lm.cli.options import bool_options, with_values
from lit_lm.cli.recipes import recipes
from lit_lm.data.corpus import Part
from lit_lm.data.inspection import info, show
from lit_lm.data.prepare import prepare
from lit_lm.data.windowed import WindowedData
from lit_lm.data.windows import check_lengths
from lit_lm.model.config import TransformerConfig

USED = ("seed", "name", "data", "model")
"""Sections of a config that are read here; of model, only net."""


def add_own_arguments(parser: ArgumentParser, command: str) -> None:
    """Add the options that only this command has."""
    if command == "prepare":
        parser.add_argument("--part", type=str | None, help="Prepare only part i of n, given as i/n (i from 1).")
        parser.add_argument("--merge", action="store_true", help="Check that all parts are present and complete.")
        bad = "Whether to stop at the first document that cannot be read, or to skip and count such documents."
        parser.add_argument("--on_bad_document", type=Literal["stop", "skip"], default="stop", help=bad)
        parser.add_argument("--output", type=str | None, help="Folder or URL to copy the prepared data to.")
    if command == "data show":
        parser.add_argument("--step", type=int, default=1, help="Number of the step, from 1.")


def report(command: str, data: WindowedData, options: Namespace) -> Iterator[str]:
    """Run a command on its data, which is open unless the command is `prepare`; yields the lines to print.

    Raises:
        ValueError, OSError: if an option is invalid, or the data cannot be read or written.
    """
    if command == "data info":
        return info(data)
    if command == "data show":
        return show(data, options.step)
    corpus = data.corpus
    corpus.skip_bad = options.on_bad_document == "skip"
    part = _part(options.part)
    return prepare(corpus, data.tokenizer or corpus.tokenizer(), part, merge=options.merge, output=options.output)


def lines_alone(command: str, args: Sequence[str]) -> Iterator[str] | None:
    """The lines that a command prints; None: its options cannot be checked here, or one is invalid.

    Raises:
        ValueError, OSError: if a config cannot be read, or the data cannot be read or written.
    """
    if (parsed := _parsed_alone(command, read_given(args).args)) is None:
        return None
    options, data = parsed
    if command != "prepare":
        data.open()
        check_lengths(data.stores, data.context_length, whole_validation=False)
    return report(command, data, options)


def _parsed_alone(command: str, args: Sequence[str]) -> tuple[Namespace, WindowedData] | None:
    used = [_without_recipe(arg) for arg in args]
    parser = _parser(command)
    try:
        options = parser.parse_args(with_values(used, bool_options(parser), positionals=False), with_meta=False)
        make_data_absolute(options.data)
        TransformerConfig(**options.model.net.as_dict())
        data = WindowedData(**options.data.as_dict())
    except (ArgumentError, ValueError, RecursionError, AttributeError, IndexError, KeyError, TypeError):
        return None  # for `lit_lm.cli.data_config` to explain
    own_class = isinstance(options.data.source, dict) and "class_path" in options.data.source
    valid_seed = 0 <= options.seed < 2**32
    return None if data.streaming or own_class or not valid_seed else (options, data)


def _parser(command: str) -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=False)  # only for --help
    parser = ArgumentParser(exit_on_error=False, add_help=False, print_config=None)
    parser.add_argument("--config", action=ActionConfigFile)
    add_own_arguments(parser, command)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", type=str | None)
    parser.add_class_arguments(TransformerConfig, "model.net", fail_untyped=False, sub_configs=True)
    parser.add_class_arguments(WindowedData, "data", fail_untyped=False, sub_configs=True)
    parser.link_arguments("seed", "data.seed")
    for name in ("context_length", "vocab_size"):
        parser.link_arguments(f"model.net.{name}", f"data.{name}")
    return parser


def _without_recipe(arg: str) -> str:
    """A config without its parts that are not used here and are like those of its recipe; other arguments unchanged."""
    option, _, value = arg.partition("=")
    if option != "--config":
        return arg
    content: dict[str, Any] = json.loads(value)
    recipe = recipes().get(str(content.get("name")))
    known: dict[str, Any] = {} if recipe is None else read_config(str(recipe))
    kept = {name: part for name, part in content.items() if name in USED or not _alike({name: part}, known)}
    if isinstance(model := kept.get("model"), dict):
        of_recipe = known.get("model", {})
        kept["model"] = {
            name: part for name, part in model.items() if name == "net" or not _alike({name: part}, of_recipe)
        }
    return f"--config={json.dumps(kept)}"


def _alike(part: Any, known: Any) -> bool:
    """Whether a part of a config is valid because `known` is: it has the same options, with values of the same type."""
    if isinstance(part, dict) and isinstance(known, dict):
        return all(name in known and _alike(value, known[name]) for name, value in part.items())
    return part == known or (type(part) is type(known) and isinstance(part, int | float))


def _part(text: str | None) -> Part | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"part is {text!r}; it must be i/n with i from 1 to n, like 1/4")
    return int(match[1]), int(match[2])
