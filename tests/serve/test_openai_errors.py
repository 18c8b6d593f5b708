"""Errors as exceptions of the published client of OpenAI's API."""

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from helpers.serving import CONTEXT, random_model, serving, wait_until
from openai import OpenAI

from lit_lm.inference.language_model import LanguageModel
from lit_lm.serve.worker import Worker


@pytest.mark.parametrize(
    ("options", "error", "param", "code"),
    [
        ({"temperature": -1}, openai.BadRequestError, "temperature", None),
        ({"max_tokens": CONTEXT}, openai.BadRequestError, "max_tokens", "context_length_exceeded"),
        ({"prompt": [1] * CONTEXT}, openai.BadRequestError, "prompt", "context_length_exceeded"),
        ({"prompt": [10**6]}, openai.BadRequestError, "prompt", None),
        ({"extra_body": {"tempature": 1}}, openai.BadRequestError, "tempature", "unknown_parameter"),
        ({"model": "gpt-5"}, openai.NotFoundError, "model", "model_not_found"),
        ({"n": 9}, openai.BadRequestError, None, None),
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_errors_are_the_clients(
    client: OpenAI, options: dict[str, Any], error: type[openai.APIStatusError], param: str, code: str, stream: bool
) -> None:
    arguments: Any = {"model": "plain", "prompt": "The", "stream": stream} | options
    with pytest.raises(error) as caught:
        client.completions.create(**arguments)
    body: Any = caught.value.body
    assert (body["param"], body["code"], body["type"]) == (param, code, "invalid_request_error")
    assert body["message"]


def test_an_unknown_model_cannot_be_retrieved(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there is plain, chatty"):
        client.models.retrieve("gpt-5/../x")


def test_a_key(model: LanguageModel) -> None:
    with serving(Worker("plain", model, max_rows=1, max_waiting=1), api_key="sésame") as served:
        for key, good in (("sésame", True), ("sesame", False)):
            headers = {"Authorization": f"Bearer {key}".encode()}
            answer = httpx.get(f"{served.url}/v1/models", headers=headers, timeout=60)
            assert answer.status_code == (200 if good else 401)
        with OpenAI(base_url=f"{served.url}/v1", api_key="wrong", timeout=60) as client:
            for call in (
                lambda: client.completions.create(model="plain", prompt="a"),
                lambda: client.chat.completions.create(model="plain", messages=[]),
                client.models.list,
            ):
                with pytest.raises(openai.AuthenticationError) as caught:
                    call()
                assert caught.value.code == "invalid_api_key"
        assert httpx.get(f"{served.url}/health", timeout=60).json() == {"status": "ok"}


@pytest.fixture
def busy(client: OpenAI) -> Iterator[OpenAI]:
    """A client of a server on which one completion runs, and one waits."""
    worker = Worker("plain", random_model(), max_rows=1, max_waiting=1)
    bias = {str(worker.model.tokenizer.end_id): -100}
    with serving(worker) as served, served.slowly(0.05), client.with_options(base_url=f"{served.url}/v1") as busy:
        options: Any = {"model": "plain", "prompt": "a", "max_tokens": 100, "logit_bias": bias, "stream": True}
        with busy.completions.create(**options) as first:
            next(first)
            with busy.completions.create(**options):
                wait_until(lambda: worker.num_waiting == 1)
                yield busy


def test_too_many_requests(busy: OpenAI) -> None:
    with pytest.raises(openai.RateLimitError) as caught:
        busy.completions.create(model="plain", prompt="a")
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.response.headers["retry-after"] == "1"
