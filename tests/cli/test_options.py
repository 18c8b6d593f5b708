"""Fields as options: the values that words become, the help that docstrings become."""

from argparse import ArgumentParser
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from lit_lm.cli.options import add_fields, field_docs, from_options, parsed


@dataclass(frozen=True)
class Fruit:
    """An example."""

    count: int = 3
    """How many; 100 % of them
    are counted."""
    weight: float | None = None
    """In grams; null: unknown."""
    colour: Literal["red", "green"] = "red"
    """What they look like."""
    names: tuple[str, ...] = ()
    """What they are called."""
    ripe: bool = False
    """Whether they can be eaten."""

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError("count is negative")


def parse(*args: str) -> Fruit:
    parser = ArgumentParser()
    add_fields(parser, Fruit)
    return from_options(Fruit, parser.parse_args(args))


def test_defaults_are_the_fields_own() -> None:
    assert parse() == Fruit()


def test_each_field_is_an_option() -> None:
    words = ["--count=5", "--weight=2.5", "--colour=green", "--names=a", "--names", "b c", "--ripe"]
    assert parse(*words) == Fruit(5, 2.5, "green", ("a", "b c"), True)
    assert parse("--weight", "null") == Fruit()


def test_all_values_of_a_wrong_type_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"count is 'x'; it must be a whole number\nweight is 'heavy'; it must be a n"):
        parse("--count=x", "--weight=heavy")


@pytest.mark.parametrize(
    ("hint", "words", "value"),
    [
        (int, ["7"], 7),
        (int | None, ["None"], None),
        (bool, ["True"], True),
        (tuple[int, ...], ["1", "2"], (1, 2)),
        (tuple[int, ...], [], ()),
        (Literal["a", "b"], "a", "a"),
    ],
)
def test_values(hint: Any, words: Any, value: object) -> None:
    assert parsed(hint, words) == value


@pytest.mark.parametrize(
    ("hint", "words", "message"),
    [
        (int, [], "one value"),
        (int, ["1", "2"], "one value"),
        (bool, ["maybe"], "true or false"),
        (Literal["a", "b"], ["c"], "one of a, b"),
        (tuple[int, ...], ["1", "x"], "whole number"),
    ],
)
def test_what_is_no_value(hint: Any, words: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parsed(hint, words)


def test_help_is_the_docstrings(capsys: pytest.CaptureFixture[str]) -> None:
    assert field_docs(Fruit)["count"] == "How many; 100 % of them are counted."
    with pytest.raises(SystemExit):
        parse("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "100 % of them are counted. (default: 3)" in shown
    assert "What they are called. Repeatable." in shown
