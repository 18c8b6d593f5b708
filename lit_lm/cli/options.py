"""Options from the fields of a dataclass (types, defaults, docstrings), for the command line and for sessions."""

import ast
import inspect
import textwrap
import types
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin, get_type_hints


def add_fields(parser: ArgumentParser, kind: type) -> None:
    """Add an option for each field of a dataclass, with its docstring as help."""
    docs, hints = field_docs(kind), get_type_hints(kind)
    group = parser.add_argument_group(kind.__name__.removesuffix("Config").lower())
    for field in fields(kind):
        hint = hints[field.name]
        text = docs[field.name].replace("%", "%%")
        if hint is bool:
            group.add_argument(f"--{field.name}", action="store_true", default=field.default, help=text)
            continue
        several = get_origin(hint) is tuple
        text += " Repeatable." if several else f" (default: {'null' if field.default is None else field.default})"
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
    return {int: "N", float: "X", str: "STRING"}[hint]
