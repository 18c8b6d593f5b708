"""Options from dataclass fields: parsed values, and help from docstrings."""

import re
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from lit_lm.cli.options import Parser, add_fields, field_docs, from_options, parsed, with_values


@dataclass(frozen=True)
class Fruit:
    """An example."""

    count: int = 3
    """Number of fruits; 100 % of them
    are counted."""
    weight: float | None = None
    """Weight in grams; null: unknown."""
    colour: Literal["red", "green"] = "red"
    """Colour of the skin."""
    names: tuple[str, ...] = ()
    """Names of the fruits."""
    ripe: bool = False
    """Whether the fruits are ripe."""

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError("count is negative")


def parse(*args: str) -> Fruit:
    parser = Parser("fruit")
    add_fields(parser, Fruit)
    return from_options(Fruit, parser.parse_args(args))


def test_defaults_come_from_the_fields() -> None:
    assert parse() == Fruit()


def test_each_field_is_an_option() -> None:
    words = ["--count=5", "--weight=2.5", "--colour=green", "--names=a", "--names", "b c", "--ripe"]
    assert parse(*words) == Fruit(5, 2.5, "green", ("a", "b c"), True)
    assert parse("--weight", "null") == Fruit()


def test_a_boolean_needs_no_value_and_does_not_take_the_next_argument() -> None:
    bools = {"--ripe", "--json"}
    assert with_values(["--ripe", "a text", "--json"], bools) == ["--ripe=true", "a text", "--json=true"]
    assert with_values(["--ripe", "False", "a text"], bools) == ["--ripe=False", "a text"]
    assert with_values(["--ripe", "null", "--json", "--x"], bools, positionals=False) == [
        *("--ripe=null", "--json=true", "--x")
    ]
    assert with_values(["--json=true", "--count", "true", ""], bools) == ["--json=true", "--count", "true", ""]
    assert not parse("--ripe", "false").ripe
    assert parse("--ripe").ripe


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--rpie"], "unknown argument --rpie; did you mean --ripe?; see fruit --help"),
        (["apple"], "unknown argument apple; a text with spaces needs quotes; see fruit --help"),
        (["--count"], "argument --count: expected one argument; see fruit --help"),
        (["--ripe=maybe"], "ripe is 'maybe'; it must be true or false"),
    ],
)
def test_an_invalid_command_line_is_an_error_with_a_remedy(args: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(*args)


def test_all_values_of_the_wrong_type_are_reported_at_once() -> None:
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
def test_words_are_parsed_by_type(hint: Any, words: Any, value: object) -> None:
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
def test_invalid_words_are_rejected(hint: Any, words: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parsed(hint, words)


def test_docstrings_are_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert field_docs(Fruit)["count"] == "Number of fruits; 100 % of them are counted."
    with pytest.raises(SystemExit):
        parse("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "100 % of them are counted. (default: 3)" in shown
    assert "Names of the fruits. Repeatable." in shown
