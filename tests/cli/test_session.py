"""Interactive sessions with simulated input."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lit_lm.cli.session import Session, Settings, history_file
from lit_lm.inference.engine import make_engine
from lit_lm.inference.sampling import SamplingConfig
from lit_lm.inference.text import Piece, TextGenerator
from lit_lm.model.config import TransformerConfig
from lit_lm.model.transformer import Transformer
from lit_lm.tokenizer.tokenizer import Tokenizer

Typed = str | type[BaseException]


@pytest.fixture(scope="module")
def generator() -> TextGenerator:
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["The cat saw a dog. 宝玉笑道。"], 300)
    sizes = {"context_length": 24, "d_model": 16, "num_layers": 1, "num_heads": 2}
    return TextGenerator(tokenizer, make_engine(Transformer(TransformerConfig(vocab_size=300, **sizes)).eval()))


def typed(generator: TextGenerator, *lines: Typed, **options: object) -> tuple[Session, str]:
    """Run a session with these input lines or exceptions; returns the session and its output."""
    keys = iter(lines)

    def ask(prompt: str) -> str:
        line = next(keys, EOFError)
        if not isinstance(line, str):
            raise line
        return line

    out = io.StringIO()
    session = Session(generator, SamplingConfig(max_new_tokens=4), Settings(**options), ask=ask, out=out)  # type: ignore[arg-type]
    session.run()
    return session, out.getvalue()


def test_each_line_is_a_prompt_and_uses_the_next_seed(generator: TextGenerator) -> None:
    session, output = typed(generator, "The cat", "宝玉", "", seed=7)
    assert [(text.prompt, text.seed) for text in session.texts] == [("The cat", 7), ("宝玉", 8), ("", 9)]
    assert all(text.prompt + text.continuation in output for text in session.texts)
    assert typed(generator, "The cat", seed=7)[0].texts[0].continuation == session.texts[0].continuation


def test_retry_repeats_the_prompt_with_the_next_seed(generator: TextGenerator) -> None:
    session, _ = typed(generator, "The cat", "/retry", "/set temperature 0", "/retry", "/retry")
    assert {text.prompt for text in session.texts} == {"The cat"}
    continuations = [text.continuation for text in session.texts]
    assert continuations[0] != continuations[1]
    assert continuations[2] == continuations[3]
    assert "no prompt to retry yet" in typed(generator, "/retry")[1]


def test_several_samples_or_beams_are_shown_one_after_the_other(generator: TextGenerator) -> None:
    session, output = typed(generator, "/set num_samples 3", "The", "/set temperature 0", "/set num_beams 3", "The")
    assert len(session.texts) == 6
    assert [text.seed for text in session.texts] == [0, 0, 0, 1, 1, 1]
    assert all(f"The{text.continuation}\n" in output for text in session.texts)


def test_alternatives_need_a_single_text(generator: TextGenerator) -> None:
    session, output = typed(generator, "/set num_samples 3", "/set alternatives 2", "The", "/set num_samples 1", "The")
    assert output.count("error: alternatives are listed for one text at a time") == 1
    assert len(session.texts) == 1


def test_set_changes_one_setting_and_an_invalid_value_changes_nothing(generator: TextGenerator) -> None:
    session, output = typed(
        generator,
        "/set temperature 0.7",
        "/set top_k 5",
        '/set stop "the end" 完',
        "/set sliding_window true",
        "/set top_k null",
        "/set temperature -1",
        "/set temperature hot",
        "/set tempurature 1",
        "/set show colours",
        "/set alternatives",
        '/set stop "',
    )
    assert session.sampling == SamplingConfig(max_new_tokens=4, temperature=0.7, sliding_window=True)
    assert session.settings == Settings(stop=("the end", "完"))
    for message in (
        "temperature is -1.0; it must be at least 0",
        "temperature is 'hot'; it must be a number",
        "did you mean temperature?",
        "show is 'colours'; it must be one of text, probs",
        "alternatives is ''; it takes one value",
        "No closing quotation",
    ):
        assert f"error: {message}" in output or message in output


def test_set_without_arguments_lists_all_settings(generator: TextGenerator) -> None:
    _, output = typed(generator, "/set")
    assert {line.split()[0] for line in output.splitlines() if line} == set(vars(SamplingConfig()) | vars(Settings()))


def test_save_writes_the_texts_and_never_overwrites_a_file(generator: TextGenerator, tmp_path: Path) -> None:
    path = tmp_path / "my stories.txt"
    session, output = typed(generator, "The cat", "宝玉", f"/save '{path}'", f"/save '{path}'", "/save", "/save /no/x")
    expected = "\n\n".join(text.prompt + text.continuation for text in session.texts) + "\n"
    assert path.read_bytes().decode() == expected
    assert f"2 texts are in {path}" in output
    assert output.count("error: ") == 3
    assert f"error: {path} already exists; choose another name" in output


def test_ctrl_c_stops_the_text_and_not_the_session(generator: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = TextGenerator.stream

    def interrupted(*args: object, **options: object) -> Iterator[Piece]:
        yield next(whole(*args, **options))  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(TextGenerator, "stream", interrupted)
    session, output = typed(generator, "The cat", KeyboardInterrupt, "/help")
    assert len(session.texts[0].pieces) == 1
    assert session.texts[0].ended is None
    assert "/retry" in output


def test_only_quit_and_the_end_of_input_end_a_session(generator: TextGenerator) -> None:
    assert "/nope" in typed(generator, "/nope", "/", "/quit", "never typed")[1]
    session, output = typed(generator, "word " * 40, "The", "/hlep")
    assert "do not fit into the context of 24" in output
    assert "did you mean /help?" in output
    assert [text.prompt for text in session.texts] == ["The"]


def test_names_are_completed(generator: TextGenerator) -> None:
    session, _ = typed(generator)
    assert [session.complete("/s", number) for number in range(3)] == ["/set", "/save", None]
    assert session.complete("temp", 0) == "temperature"


def test_history_is_saved_in_the_state_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert history_file() == Path("/state/lit-lm/history")
    monkeypatch.setenv("XDG_STATE_HOME", "")
    assert history_file() == Path.home() / ".local/state/lit-lm/history"
