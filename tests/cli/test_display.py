"""Output to a terminal and to a pipe."""

import io
import json
import math
from collections.abc import Generator

import pytest

from lit_lm.cli.display import Display, as_json
from lit_lm.inference.continuation import Token
from lit_lm.inference.text import Piece, Text
from lit_lm.tokenizer.tokenizer import Tokenizer


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a b c"], 257)


def piece(text: str, probability: float) -> Piece:
    return Piece(text, (Token(1, math.log(probability), ((2, -0.1), (3, -2.0))),))


def test_colours_show_probability(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    Display(out, tokenizer, probabilities=True).show(Text("P", 0, [piece("sure", 0.9), piece("rare", 0.01)]))
    assert out.getvalue() == "\x1b[1mP\x1b[0m\x1b[32msure\x1b[0m\x1b[31mrare\x1b[0m\n"


@pytest.mark.parametrize("no_color", [True, False])
def test_pipes_and_no_color_get_plain_text(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, no_color: bool
) -> None:
    monkeypatch.setenv("NO_COLOR", "1" if no_color else "")
    out = Terminal() if no_color else io.StringIO()
    display = Display(out, tokenizer, probabilities=True)
    display.show(Text("P", 0, [piece("sure", 0.9)]))
    display.legend()
    assert out.getvalue() == "Psure\n"


def test_control_characters_are_replaced_on_a_terminal(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    terminal, pipe = Terminal(), io.StringIO()
    for out in (terminal, pipe):
        Display(out, tokenizer).show(Text("", 0, [piece("a\x1b]0;title\x07\tb\n\x9b", 0.5)]))
    assert terminal.getvalue() == "a\ufffd]0;title\ufffd\tb\n\ufffd\n"
    assert pipe.getvalue() == "a\x1b]0;title\x07\tb\n\x9b\n"


def test_alternatives_are_listed_one_line_per_token(tokenizer: Tokenizer) -> None:
    out = io.StringIO()
    Display(out, tokenizer, alternatives=1).show(Text("P", 0, [piece("x", 0.5), piece("y", 0.25)]))
    prompt, first, second = out.getvalue().splitlines()
    assert prompt == '"P"'
    assert first.split() == [
        json.dumps(tokenizer.decode([1])),
        "0.500",
        "|",
        json.dumps(tokenizer.decode([2])),
        "0.905",
    ]
    assert "0.250" in second


def test_nothing_is_shown_if_the_first_piece_fails(tokenizer: Tokenizer) -> None:
    out = io.StringIO()

    def fails() -> object:
        raise ValueError("too long")
        yield

    with pytest.raises(ValueError, match="too long"):
        Display(out, tokenizer).show(Text("P", 0), fails())  # type: ignore[arg-type]
    assert out.getvalue() == ""


def test_pieces_that_were_held_back_are_shown_after_an_interruption(tokenizer: Tokenizer) -> None:
    out, text = io.StringIO(), Text("P", 0)

    def interrupted() -> Generator[Piece, None, None]:
        try:
            text.pieces.append(piece("one ", 0.5))
            yield text.pieces[-1]
            raise KeyboardInterrupt
        finally:
            text.pieces.append(piece("EN", 0.5))

    with pytest.raises(KeyboardInterrupt):
        Display(out, tokenizer).show(text, interrupted())
    assert out.getvalue() == "Pone EN\n"


def test_json_is_one_line(tokenizer: Tokenizer) -> None:
    text = Text("宝\n", 4, [piece("x", 0.5), piece("y", 0.25)], "end")
    line = as_json(text, tokenizer, sample=1, tokens=True)
    row = json.loads(line)
    assert "\n" not in line
    assert "宝" in line
    assert (row["prompt"], row["continuation"], row["seed"], row["sample"]) == ("宝\n", "xy", 4, 1)
    assert row["log_probability"] == pytest.approx(math.log(0.125))
    assert [token["id"] for token in row["tokens"]] == [1, 1]
    assert row["tokens"][0]["alternatives"][1] == {"id": 3, "text": tokenizer.decode([3]), "log_probability": -2.0}
    assert "tokens" not in json.loads(as_json(text, tokenizer))
