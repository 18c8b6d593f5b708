"""Command lines without jsonargparse, and options from the fields of a dataclass (types, defaults, docstrings)."""

import ast
import difflib
import inspect
import textwrap
import types
from argparse import ArgumentParser, ArgumentTypeError, _SubParsersAction
from collections.abc import Collection, Sequence
from dataclasses import fields
from itertools import chain, pairwise
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

BOOL = "{true,false}"


class Parser(ArgumentParser):
    """Raises ValueError instead of exiting, and suggests the nearest option for an unknown one."""

    def __init__(self, prog: str, **kwargs: Any) -> None:
        super().__init__(prog, **{**kwargs, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")

    def add_bool(self, name: str, text: str) -> None:
        """Add an option that is true or false; `text` is its help."""
        self.add_argument(name, metavar=BOOL, type=_true_or_false, default=False, help=text)

    def parse_args(self, args: Sequence[str]) -> Any:  # type: ignore[override]
        """Parse all arguments.

        Raises:
            ValueError: if one is invalid or unknown.
        """
        if dashes := [arg for arg in args if arg.startswith("--") and arg.endswith("=--")]:
            self.error(f"{dashes[0]} has no value")  # argparse takes -- for the end of the options, also here
        bools = {name for action in self._actions if action.metavar == BOOL for name in action.option_strings}
        options, unknown = self.parse_known_args(with_values(args, bools))
        if unknown and unknown[0].startswith("-"):
            nearest = difflib.get_close_matches(unknown[0].partition("=")[0], option_names(self), n=1)
            self.error(f"unknown argument {unknown[0]}" + (f"; did you mean {nearest[0]}?" if nearest else ""))
        if unknown:
            self.error(f"unknown argument {unknown[0]}; a text with spaces needs quotes")
        return options


def _true_or_false(text: str) -> bool:
    try:
        return bool(parsed(bool, text))
    except ValueError as error:  # argparse would not show its message
        raise ArgumentTypeError(f"it is {text!r}; {error}") from None


def option_names(parser: ArgumentParser) -> list[str]:
    """The options of a parser and its subcommands."""
    names: list[str] = []
    for action in parser._actions:
        names += action.option_strings
        if isinstance(action, _SubParsersAction):
            names += chain.from_iterable(map(option_names, action.choices.values()))
    return names


def bool_options(parser: ArgumentParser) -> set[str]:
    """The options of jsonargparse's parser that are true, false or null."""
    kinds = {action: getattr(action, "_typehint", None) for action in parser._actions}
    return {name for action, kind in kinds.items() if kind in (bool, bool | None) for name in action.option_strings}


def with_values(args: Sequence[str], bools: Collection[str], *, positionals: bool = True) -> list[str]:
    """The arguments with every boolean option as `--name=value`; the value is true where none follows.

    With positional arguments, only true and false are values.
    """
    joined: list[str] = []
    for arg in args:
        is_value = arg.lower() in ("true", "false") if positionals else not arg.startswith("-")
        if is_value and joined and joined[-1] in bools:
            joined[-1] += f"={arg}"
        else:
            joined.append(arg)
    return [f"{arg}=true" if arg in bools else arg for arg in joined]


def add_fields(parser: ArgumentParser, kind: type) -> None:
    """Add an option for each field of a dataclass, with its docstring as help."""
    docs, hints = field_docs(kind), get_type_hints(kind)
    group = parser.add_argument_group(kind.__name__.removesuffix("Config").lower())
    for field in fields(kind):
        hint = hints[field.name]
        text = docs[field.name].replace("%", "%%")
        several = get_origin(hint) is tuple
        text += " Repeatable." if several else f" (default: {shown(field.default)})"
        group.add_argument(
            f"--{field.name}",
            action="append" if several else "store",
            default=None if several else field.default,
            metavar=_metavar(hint),
            help=text,
        )


def from_options(kind: type, options: Any) -> Any:
    """Build a dataclass from parsed options.

    Raises:
        ValueError: listing the options whose values have the wrong type.
    """
    hints, values, problems = get_type_hints(kind), {}, []
    for field in fields(kind):
        value = getattr(options, field.name)
        try:
            values[field.name] = parsed(hints[field.name], value) if isinstance(value, str | list) else value
        except ValueError as error:
            problems.append(f"{field.name} is {value!r}; {error}")
    if problems:
        raise ValueError("\n".join(problems))
    return kind(**{name: () if value is None and _is_tuple(hints[name]) else value for name, value in values.items()})


def parsed(hint: Any, text: str | Sequence[str]) -> Any:
    """Parse words of a command line as a value of type `hint`.

    Raises:
        ValueError: naming the valid values.
    """
    if _is_tuple(hint):
        return tuple(parsed(get_args(hint)[0], word) for word in ([text] if isinstance(text, str) else text))
    if not isinstance(text, str):
        if len(text) != 1:
            raise ValueError("it takes one value")
        (text,) = text
    if isinstance(hint, types.UnionType):
        return None if text.lower() in ("null", "none") else parsed(get_args(hint)[0], text)
    if get_origin(hint) is Literal:
        if text not in get_args(hint):
            raise ValueError(f"it must be one of {', '.join(get_args(hint))}")
        return text
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError("it must be true or false")
        return text.lower() == "true"
    try:
        return hint(text)
    except ValueError:
        raise ValueError({int: "it must be a whole number", float: "it must be a number"}[hint]) from None


def shown(value: Any) -> str:
    """A value as it is written on a command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def field_docs(kind: type) -> dict[str, str]:
    """Docstring of each field of a dataclass."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(doc.value.value.split())
        for field, doc in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(doc, ast.Expr)
        and isinstance(doc.value, ast.Constant)
        and isinstance(doc.value.value, str)
    }


def _is_tuple(hint: Any) -> bool:
    return get_origin(hint) is tuple


def _metavar(hint: Any) -> str:
    if isinstance(hint, types.UnionType) or _is_tuple(hint):
        return _metavar(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return "{" + ",".join(get_args(hint)) + "}"
    return {int: "N", float: "X", str: "STRING", bool: BOOL}[hint]
