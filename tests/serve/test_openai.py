"""Completions, with the published client of OpenAI's API."""

import json
from itertools import groupby
from typing import Any

import httpx
import pytest
import torch
from helpers.openai_client import complete, expected, found, streamed, strict
from helpers.serving import CONTEXT, Served, wait_until
from openai import OpenAI

from lit_lm.inference.language_model import LanguageModel
from lit_lm.inference.sampling import SamplingConfig
from lit_lm.serve.requests import CompletionRequest

PROMPTS = ["The cat", "", "从前", "What a day! "]
CONTROLS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.0, "top_k": 20, "min_p": 0.05},
    {"temperature": 1.0, "frequency_penalty": 1.5, "presence_penalty": -0.5},
    {"temperature": 1.0, "repetition_penalty": 1.3},
]


def test_models_are_listed(client: OpenAI, model: LanguageModel) -> None:
    listed = list(client.models.list())
    assert [strict(each).id for each in listed] == ["plain", "chatty"]
    about: Any = strict(client.models.retrieve("plain")).to_dict()["lit_lm"]
    assert about == {
        "parameters": sum(parameter.numel() for parameter in model.transformer.parameters()),
        "context_length": CONTEXT,
        "vocab_size": model.config.vocab_size,
        "num_layers": 2,
        "num_heads": 4,
        "chat": False,
    }
    assert listed[1].to_dict()["lit_lm"] == {**about, "chat": True}


@pytest.mark.parametrize("sampling", CONTROLS, ids=str)
def test_a_seed_gives_the_words_of_generate(client: OpenAI, model: LanguageModel, sampling: dict[str, Any]) -> None:
    for prompt in PROMPTS:
        answer = complete(client, prompt, sampling, seed=5, n=3)
        assert found(answer.choices) == expected(model, prompt, sampling, n=3)
        assert answer.model == "plain"
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == max(1, len(model.tokenizer.encode(prompt)))


def test_several_prompts_are_answered_in_order(client: OpenAI, model: LanguageModel) -> None:
    answer = complete(client, PROMPTS, {"temperature": 0.9}, seed=5, n=2)
    assert found(answer.choices) == [
        each for prompt in PROMPTS for each in expected(model, prompt, {"temperature": 0.9}, n=2)
    ]


def test_ids_are_prompts_too(client: OpenAI, model: LanguageModel) -> None:
    ids = [model.tokenizer.encode(prompt) or [model.tokenizer.end_id] for prompt in PROMPTS]
    texts = complete(client, PROMPTS, {}, seed=5)
    assert found(complete(client, ids, {}, seed=5).choices) == found(texts.choices)
    assert found(complete(client, ids[0], {}, seed=5).choices) == found(texts.choices[:1])


def test_without_a_seed_texts_differ(client: OpenAI) -> None:
    texts = {complete(client, "The", {}, n=4).choices[number].text for number in range(4) for _ in range(2)}
    assert len(texts) > 4


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_joins_to_the_whole(client: OpenAI, n: int) -> None:
    for seed in range(5):
        whole = complete(client, "The", {}, seed=seed, n=n)
        chunks = streamed(client, prompt="The", seed=seed, n=n, stream_options={"include_usage": True})
        assert len({(chunk.id, chunk.model, chunk.created) for chunk in chunks}) == 1
        assert chunks[-1].choices == []
        assert chunks[-1].usage == whole.usage
        parts = [chunk.choices[0] for chunk in chunks[:-1]]
        assert {part.index for part in parts} == set(range(n))
        for index, group in groupby(sorted(parts, key=lambda part: part.index), key=lambda part: part.index):
            *before, last = group
            assert "".join(part.text for part in [*before, last]) == whole.choices[index].text
            assert last.finish_reason == whole.choices[index].finish_reason
            assert not any(part.finish_reason for part in before)


def test_a_stream_arrives_while_it_is_written(served: Served, client: OpenAI, model: LanguageModel) -> None:
    options: Any = {"model": "plain", "prompt": "The", "max_tokens": 100, "stream": True, "seed": 0}
    bias = {str(model.tokenizer.end_id): -100}
    with served.slowly(0.02), client.completions.create(**options, logit_bias=bias) as stream:
        assert next(stream).choices
        assert served.workers[0].num_rows == 1
    wait_until(lambda: served.workers[0].num_rows == 0)


def test_a_stream_is_ascii(served: Served, model: LanguageModel) -> None:
    """Some clients take other characters, such as U+2028, for the end of a line."""
    dog = model.tokenizer.encode("小狗")
    body = {"prompt": dog, "echo": True, "max_tokens": 1, "stream": True}
    answer = httpx.post(f"{served.url}/v1/completions", json=body, timeout=60)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.content.isascii()
    first, *_ = answer.text.split("\n\n")
    assert json.loads(first.removeprefix("data: "))["choices"][0]["text"] == "小狗"


def test_usage_comes_only_if_asked_for(client: OpenAI) -> None:
    assert [chunk.usage for chunk in streamed(client, prompt="The", seed=0) if chunk.usage] == []


def test_stop_strings(client: OpenAI, model: LanguageModel) -> None:
    for seed in range(10):
        ((whole, _),) = expected(model, "The", {"temperature": 1.0}, seed=seed)
        for stop in (whole[3:5], [whole[-1:], whole[4:9], "never"], [f"{whole[2:]}!"]):
            if not stop or (isinstance(stop, list) and "" in stop):
                continue
            stops = [stop] if isinstance(stop, str) else stop
            answer = complete(client, "The", {}, seed=seed, stop=stop)
            assert found(answer.choices) == expected(model, "The", {"temperature": 1.0}, seed=seed, stop=stops)
            chunks = streamed(client, prompt="The", seed=seed, stop=stop)
            assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text
            assert chunks[-1].choices[0].finish_reason == answer.choices[0].finish_reason


def test_the_end_of_a_text(client: OpenAI, model: LanguageModel) -> None:
    end = str(model.tokenizer.end_id)
    answer = complete(client, "The", {}, logit_bias={end: 100})
    assert found(answer.choices) == [("", "stop")]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0
    score: Any = complete(client, "The", {"return_tokens": True}, logit_bias={end: 100}, logprobs=1, echo=True)
    assert [token["id"] for token in score.choices[0].tokens] == [
        *model.tokenizer.encode("The"),
        model.tokenizer.end_id,
    ]
    value = model.logits("The")[-1].log_softmax(-1)[model.tokenizer.end_id]
    assert score.choices[0].logprobs.token_logprobs[-1] == pytest.approx(float(value), abs=1e-5)
    assert complete(client, "The", {}, logit_bias={end: -100}).choices[0].finish_reason == "length"


def test_a_logit_bias_forces_a_token(client: OpenAI, model: LanguageModel) -> None:
    (token,) = model.tokenizer.encode("猫")[:1]
    answer: Any = complete(client, "The", {"return_tokens": True}, logit_bias={str(token): 100}, max_tokens=5)
    assert [each["id"] for each in answer.choices[0].tokens] == [token] * 5


def test_null_is_the_default(client: OpenAI) -> None:
    names = ("temperature", "top_p", "n", "stop", "logprobs", "echo", "frequency_penalty", "logit_bias", "user")
    usual = complete(client, "The", {}, seed=1)
    assert found(complete(client, "The", {}, seed=1, **dict.fromkeys(names)).choices) == found(usual.choices)
    longest = complete(client, "The", {}, seed=1, max_tokens=None, logit_bias={})
    assert longest.choices[0].text.startswith(usual.choices[0].text)


def test_the_prompts_own_log_probabilities(client: OpenAI, model: LanguageModel) -> None:
    text = "The little cat liked 小狗 a lot."
    ids = [model.tokenizer.end_id, *model.tokenizer.encode(text)]
    answer = complete(client, ids, {}, echo=True, max_tokens=0, logprobs=3)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == (text, "length")
    assert choice.logprobs is not None
    first, *others = choice.logprobs.token_logprobs or ()
    assert first is None
    torch.testing.assert_close(torch.tensor(others), model.log_probabilities(text), atol=1e-5, rtol=0)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(ids)
    whole = complete(client, text, {}, echo=True, max_tokens=3, logprobs=0, seed=2)
    assert whole.choices[0].text == text + complete(client, text, {}, max_tokens=3, seed=2).choices[0].text


def test_log_probabilities_and_alternatives(client: OpenAI, model: LanguageModel) -> None:
    for seed in range(5):
        prompt = model.tokenizer.encode("The cat")
        answer: Any = complete(client, prompt, {"return_tokens": True}, logprobs=20, seed=seed)
        tokens, logprobs = answer.choices[0].tokens, answer.choices[0].logprobs
        ids = prompt + [token["id"] for token in tokens]
        with torch.no_grad():
            log_probabilities = model.transformer(torch.tensor([ids]))[0].log_softmax(-1)[len(prompt) - 1 : -1]
        for number, row in enumerate(log_probabilities):
            assert logprobs.token_logprobs[number] == pytest.approx(float(row[ids[len(prompt) + number]]), abs=1e-5)
            likeliest = [(each["id"], each["logprob"]) for each in tokens[number]["alternatives"]]
            assert [token for token, _ in likeliest] == row.topk(20).indices.tolist()
            assert [value for _, value in likeliest] == pytest.approx(row.topk(20).values.tolist(), abs=1e-5)
            by_text = {each["text"]: each["logprob"] for each in reversed(tokens[number]["alternatives"])}
            assert logprobs.top_logprobs[number] == by_text  # of several with the same text, the likeliest
        assert "".join(logprobs.tokens) == answer.choices[0].text
        for offset, token in zip(logprobs.text_offset, logprobs.tokens, strict=True):
            assert answer.choices[0].text.startswith(token, offset)
        chunks: Any = streamed(client, prompt=prompt, logprobs=20, seed=seed, extra_body={"return_tokens": True})
        for name, values in logprobs.to_dict().items():
            assert [each for chunk in chunks for each in getattr(chunk.choices[0].logprobs, name)] == values
        assert [token for chunk in chunks for token in chunk.choices[0].tokens] == tokens


def test_every_token_of_a_prompt_is_echoed(client: OpenAI, model: LanguageModel) -> None:
    """Also those that are a part of a character, or have no text, also at the end."""
    unknown = model.tokenizer.vocab_size
    cat, dog = model.tokenizer.encode("🐈"), model.tokenizer.encode("🐕")
    assert len(cat) > 1
    for ids in (
        [unknown],
        [*cat, unknown],
        cat[:1],
        cat[:2] + dog,
        dog + cat[:1],
        [model.tokenizer.end_id],
        [5, model.tokenizer.end_id],
    ):
        answer: Any = complete(client, ids, {"return_tokens": True}, echo=True, max_tokens=0, logprobs=1)
        assert [token["id"] for token in answer.choices[0].tokens] == ids
        assert [token["logprob"] is None for token in answer.choices[0].tokens] == [True] + [False] * (len(ids) - 1)


def test_the_defaults_are_openais() -> None:
    """Not those of `lit-lm generate`, which `SamplingConfig` has."""
    assert CompletionRequest().sampling(16) == SamplingConfig(max_new_tokens=16, temperature=1.0, top_p=1.0)
