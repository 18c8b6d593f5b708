"""Streamed text against the same ids decoded at once, stop strings against str.find."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_lm.inference.continuation import Token
from lit_lm.inference.engine import make_engine
from lit_lm.inference.generate import generate
from lit_lm.inference.sampling import SamplingConfig
from lit_lm.inference.text import (
    Piece,
    StopFilter,
    Text,
    TextGenerator,
    encode_prompt,
    stop_string_criterion,
    whole_text,
)
from lit_lm.model.config import TransformerConfig
from lit_lm.model.transformer import Transformer
from lit_lm.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def generator() -> TextGenerator:
    """A generator with random weights, so that its text is full of broken characters."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["The cat saw a dog. 宝玉笑道。 Él comió."], 300)
    sizes = {"context_length": 24, "d_model": 16, "num_layers": 1, "num_heads": 2}
    return TextGenerator(tokenizer, make_engine(Transformer(TransformerConfig(vocab_size=300, **sizes)).eval()))


@pytest.mark.parametrize("prompt", ["The cat", "宝玉", "", "é\n"])
def test_streamed_pieces_add_up_to_the_text_of_the_ids(generator: TextGenerator, prompt: str) -> None:
    sampling = SamplingConfig(temperature=1.0, top_p=1.0)
    ids = encode_prompt(generator.tokenizer, prompt)
    ((whole,),) = generate(generator.engine, [ids], sampling, seeds=[3], end_id=generator.tokenizer.end_id)
    text = Text(prompt, 3)
    pieces = list(generator.stream(text, sampling, num_alternatives=2))
    assert [token.id for token in text.tokens] == whole.ids
    assert text.continuation == "".join(piece.text for piece in pieces) == generator.tokenizer.decode(whole.ids)
    assert text.ended == whole.ended
    assert all(0 < piece.probability <= 1 for piece in pieces)
    assert all(len(token.alternatives) == 2 for token in text.tokens)


def test_generate_returns_the_streamed_text_and_more_samples(generator: TextGenerator) -> None:
    sampling = SamplingConfig(num_samples=3, max_new_tokens=8)
    first, *others = generator.generate("The", sampling, seed=5, stop=["a"])
    streamed = Text("The", 5)
    list(generator.stream(streamed, sampling, stop=["a"]))
    assert (first.continuation, first.ended) == (streamed.continuation, streamed.ended)
    assert len({text.continuation for text in (first, *others)}) == 3


def test_an_interrupted_text_keeps_its_pieces(generator: TextGenerator) -> None:
    text = Text("The", 1)
    pieces = generator.stream(text, SamplingConfig())
    yielded = [next(pieces), next(pieces)]
    pieces.close()
    assert text.pieces == yielded
    assert text.ended is None


@pytest.mark.parametrize("by_interrupt", [True, False])
def test_pieces_held_back_for_a_stop_string_are_not_lost(
    generator: TextGenerator, monkeypatch: pytest.MonkeyPatch, by_interrupt: bool
) -> None:
    free, text = Text("The", 1), Text("The", 1)
    list(generator.stream(free, SamplingConfig()))
    tokens = [token for piece in free.pieces[:4] for token in piece.tokens]
    held = "".join(piece.text for piece in free.pieces[1:4])

    def some(*_: object, **__: object) -> Iterator[Token]:
        yield from tokens
        raise KeyboardInterrupt

    monkeypatch.setattr("lit_lm.inference.text.stream", some)
    pieces = generator.stream(text, SamplingConfig(), stop=[held + "\ufffd never"])
    assert next(pieces) == free.pieces[0]
    if by_interrupt:
        with pytest.raises(KeyboardInterrupt):
            list(pieces)
    pieces.close()
    assert text.continuation == free.pieces[0].text + (held if by_interrupt else "")
    assert text.pieces == free.pieces[: 4 if by_interrupt else 1]  # each once
    assert text.ended is None


def test_a_text_is_not_generated_beyond_its_stop_string(generator: TextGenerator) -> None:
    sampling = SamplingConfig(temperature=1.0, top_p=1.0, num_samples=2)
    ids = encode_prompt(generator.tokenizer, "The")
    options: dict[str, Any] = {"seeds": [5], "end_id": generator.tokenizer.end_id}
    ((free, _),) = generate(generator.engine, [ids], sampling, **options)
    whole = generator.tokenizer.decode(free.ids)
    stop = whole[len(whole) // 2 :][:2]
    criterion = stop_string_criterion(generator.tokenizer, [stop])
    ((stopped, _),) = generate(generator.engine, [ids], sampling, **options, criterion=criterion)
    assert stopped.ended == "stop"
    assert stopped.ids == free.ids[: len(stopped.ids)]
    assert len(stopped.ids) < len(free.ids)
    text = whole_text(generator.tokenizer, "The", ids, 5, stopped, [stop])
    assert text == whole_text(generator.tokenizer, "The", ids, 5, free, [stop])
    assert text.continuation == whole[: whole.index(stop)]


def test_a_prompt_that_does_not_fit_is_rejected(generator: TextGenerator) -> None:
    with pytest.raises(ValueError, match="do not fit into the context of 24"):
        next(generator.stream(Text("word " * 40, 0), SamplingConfig()))
    sampling = SamplingConfig(sliding_window=True, max_new_tokens=5)
    assert len(list(generator.stream(Text("word " * 40, 0), sampling))) > 0


def test_a_prompt_that_is_not_utf8_is_rejected(generator: TextGenerator) -> None:
    with pytest.raises(ValueError, match="not UTF-8 at character 3"):
        encode_prompt(generator.tokenizer, "ab\udcff")


letters = st.text("ab", max_size=4)


@given(st.lists(letters.filter(bool), max_size=12), st.lists(letters.filter(bool), max_size=3))
def test_a_text_ends_where_a_stop_string_begins(parts: list[str], stop: list[str]) -> None:
    whole, stop_filter = "".join(parts), StopFilter(stop)
    size = min((whole.find(string) for string in stop if string in whole), default=len(whole))
    pieces = []
    for part in parts:
        pieces += stop_filter.feed(Piece(part, ()))
        if stop_filter.found:
            break
    pieces += stop_filter.flush()
    # if two stop strings overlap, the text ends at the one that is complete first
    ends = {whole.find(string) for string in stop if string in whole} | {len(whole)}
    passed = "".join(piece.text for piece in pieces)
    assert whole.startswith(passed)
    assert len(passed) in ends
    assert all(string not in passed for string in stop)
    assert stop_filter.found == (size < len(whole) or any(string in whole for string in stop))
    assert stop_filter.flush() == []


def test_a_piece_that_cannot_begin_a_stop_string_is_not_held_back() -> None:
    stop_filter = StopFilter(["END"])
    fed = {part: [piece.text for piece in stop_filter.feed(Piece(part, ()))] for part in ("one ", "two ", "EN")}
    assert fed == {"one ": ["one "], "two ": ["two "], "EN": []}
    assert not stop_filter.found
    assert stop_filter.feed(Piece("Done ", ())) == stop_filter.flush() == []
    assert stop_filter.found
