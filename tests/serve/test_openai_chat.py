"""Chats, and many clients at once, with the published client of OpenAI's API."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import openai
import pytest
from helpers.openai_client import HELLO, expected, found, strict
from helpers.serving import CONTEXT, Served
from openai import OpenAI
from openai.types import Completion

from lit_lm.inference.language_model import LanguageModel


def chat_texts(model: LanguageModel, seeds: Sequence[int]) -> list[str]:
    return [model.chat(HELLO, seed=seed, temperature=1.0, top_p=1.0, max_new_tokens=12) for seed in seeds]


@pytest.fixture
def chat(client: OpenAI) -> Callable[..., Any]:
    def create(**options: Any) -> Any:
        arguments: Any = {"model": "chatty", "messages": HELLO, "max_completion_tokens": 12, "seed": 5} | options
        return client.chat.completions.create(**arguments)

    return create


@pytest.fixture
def chatty(served: Served) -> LanguageModel:
    return served.workers[1].model


def test_a_chat(chat: Callable[..., Any], chatty: LanguageModel) -> None:
    answer = strict(chat(n=2))
    first, second = answer.choices
    assert first.message.role == "assistant"
    assert [first.message.content] == chat_texts(chatty, [5])
    assert second.message.content != first.message.content
    assert answer.object == "chat.completion"
    stopped = strict(chat(stop=[first.message.content[2:4]]))
    assert stopped.choices[0].message.content == first.message.content[:2]
    assert stopped.choices[0].finish_reason == "stop"


def test_a_chat_as_a_stream(chat: Callable[..., Any], chatty: LanguageModel) -> None:
    *chunks, usage = [strict(chunk) for chunk in chat(stream=True, stream_options={"include_usage": True})]
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant", *[None] * (len(chunks) - 1)]
    assert ["".join(chunk.choices[0].delta.content for chunk in chunks)] == chat_texts(chatty, [5])
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert not any(reasons[:-1])
    assert reasons[-1] in ("stop", "length")
    assert usage.usage == chat().usage
    assert {chunk.object for chunk in [*chunks, usage]} == {"chat.completion.chunk"}


def test_a_chats_log_probabilities(chat: Callable[..., Any]) -> None:
    answer = strict(chat(logprobs=True, top_logprobs=2))
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == answer.choices[0].message.content
    for token in tokens:
        assert bytes(token.bytes).decode() == token.token
        first, second = token.top_logprobs
        assert first.logprob >= max(second.logprob, token.logprob)
    chunks = [strict(chunk) for chunk in chat(logprobs=True, top_logprobs=2, stream=True)]
    assert [token for chunk in chunks for token in chunk.choices[0].logprobs.content] == tokens


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "plain"}, "the model has no chat template"),
        ({"messages": []}, "messages is \\[\\]"),
        ({"messages": [{"role": "user", "content": "a" * 10_000}]}, "the prompt has"),
        ({"max_completion_tokens": CONTEXT}, "max_tokens is 128"),
        ({"extra_body": {"tools": []}}, "there is no parameter tools"),
    ],
    ids=str,
)
def test_a_chat_that_cannot_be(chat: Callable[..., Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        chat(**options)


def test_many_asynchronous_clients(served: Served, model: LanguageModel, chatty: LanguageModel) -> None:
    seeds = range(30)

    async def main() -> tuple[list[Completion], list[str], list[str]]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", timeout=60) as client:

            async def whole(seed: int) -> Completion:
                return strict(await client.completions.create(model="plain", prompt="The", max_tokens=20, seed=seed))

            async def stream(seed: int) -> str:
                options: Any = {"model": "plain", "prompt": "The", "max_tokens": 20, "seed": seed}
                chunks = [strict(chunk) async for chunk in await client.completions.create(**options, stream=True)]
                return "".join(chunk.choices[0].text for chunk in chunks)

            async def chat(seed: int) -> str:
                options: Any = {"model": "chatty", "messages": HELLO, "max_tokens": 12, "seed": seed}
                return str(strict(await client.chat.completions.create(**options)).choices[0].message.content)

            return await asyncio.gather(*(asyncio.gather(*map(each, seeds)) for each in (whole, stream, chat)))

    wholes, streams, chats = asyncio.run(main())
    texts = [expected(model, "The", {"temperature": 1.0}, seed=seed) for seed in seeds]
    assert [found(whole.choices) for whole in wholes] == texts
    assert streams == [text for ((text, _),) in texts]
    assert chats == chat_texts(chatty, seeds)
