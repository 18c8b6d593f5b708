"""One server for all tests, with two models; what it logs must not be an error."""

import json
import logging
from collections.abc import Iterator

import pytest
from helpers.serving import TEMPLATE, Served, random_model, serving, wait_until
from helpers.sockets import COMPLETIONS, exchange, message, post
from openai import OpenAI

from lit_lm.inference.language_model import LanguageModel
from lit_lm.serve.worker import Worker


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    """A server of the models `plain` and `chatty`, which has a chat template."""
    models = {"plain": random_model(), "chatty": random_model(TEMPLATE)}
    with serving(*(Worker(name, model, max_rows=8, max_waiting=64) for name, model in models.items())) as served:
        yield served


@pytest.fixture(autouse=True)
def _nothing_went_wrong(served: Served) -> Iterator[None]:
    yield
    errors = [record.getMessage() for record in served.logged if record.levelno >= logging.ERROR or record.exc_info]
    served.logged.clear()
    assert errors == []


@pytest.fixture(scope="session")
def good_text(served: Served) -> str:
    return served.workers[0].model.generate("The", seed=1, temperature=1.0, top_p=1.0, max_new_tokens=8).continuation


@pytest.fixture(autouse=True)
def _goes_on(served: Served, good_text: str, _nothing_went_wrong: None) -> Iterator[None]:
    """After each test, no row is left, and a good request is answered."""
    yield
    wait_until(lambda: not any(worker.num_rows or worker.num_waiting for worker in served.workers))
    body = b'{"prompt": "The", "seed": 1, "max_tokens": 8}'
    status, _, content = exchange(served, message(post(COMPLETIONS, body)))
    assert (status, json.loads(content)["choices"][0]["text"]) == (200, good_text)


@pytest.fixture
def model(served: Served) -> LanguageModel:
    return served.workers[0].model


@pytest.fixture
def client(served: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client
