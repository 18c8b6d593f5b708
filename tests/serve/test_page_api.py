"""What the page asks for besides completions, and what a monitor reads."""

import asyncio
import time
from typing import Any

import httpx
import pytest
import torch
from helpers.serving import Served, random_model, serving, wait_until
from helpers.texts import NASTY
from prometheus_client.parser import text_string_to_metric_families

from lit_lm.inference.language_model import LanguageModel
from lit_lm.serve.worker import Worker

TEXT = "The little cat 小狗 🐈!"


def post(served: Served, path: str, **body: Any) -> Any:
    return httpx.post(served.url + path, json=body, timeout=60).raise_for_status().json()


def test_how_a_text_splits(served: Served, model: LanguageModel) -> None:
    for text in (TEXT, *NASTY):
        tokens = post(served, "/api/tokenize", text=text)["tokens"]
        assert [token["id"] for token in tokens] == model.tokenizer.encode(text)
    tokens = post(served, "/api/tokenize", text="a 猫🐈<|user|>", model="chatty")["tokens"]
    texts = [token["text"] for token in tokens]
    assert texts[0] == "a"
    assert texts[-1] == "<|user|>"
    assert "".join(texts[-5:-1]) == "<F0><9F><90><88>"
    assert "\ufffd" not in "".join(texts)


def test_what_a_token_looks_at(served: Served, model: LanguageModel) -> None:
    ids = model.tokenizer.encode(TEXT)
    whole = model.attention(TEXT)
    for position in (0, 3, len(ids) - 1):
        weights = torch.tensor(post(served, "/api/attention", ids=ids, position=position)["weights"])
        torch.testing.assert_close(weights, whole[:, :, position, : position + 1], atol=6e-5, rtol=0)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]), atol=2e-3, rtol=0)


def test_the_page_is_answered_while_many_texts_are_written(served: Served, model: LanguageModel) -> None:
    """It needs the model between two tokens of the others."""
    ids, bias = model.tokenizer.encode(TEXT), {str(model.tokenizer.end_id): -100}
    body = {"prompt": "a", "max_tokens": 100, "n": 8, "logit_bias": bias}

    async def main() -> None:
        async with httpx.AsyncClient(base_url=served.url, timeout=60) as client:
            with served.slowly(0.02):
                writing = asyncio.create_task(client.post("/v1/completions", json=body))
                await asyncio.to_thread(wait_until, lambda: served.workers[0].num_rows)
                for path, asked in (
                    ("/api/attention", {"ids": ids, "position": 5}),
                    ("/v1/completions", {"prompt": ids, "echo": True, "max_tokens": 0, "logprobs": 8}),
                    ("/api/tokenize", {"text": TEXT}),
                ):
                    started = time.monotonic()
                    (await client.post(path, json=asked)).raise_for_status()
                    assert time.monotonic() - started < 2
                assert not writing.done()
            (await writing).raise_for_status()

    asyncio.run(main())


def metrics(served: Served) -> dict[tuple[str, ...], float]:
    """Name, then the labels' values."""
    answer = httpx.get(f"{served.url}/metrics", timeout=60).raise_for_status()
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(answer.text)
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


def test_metrics(model: LanguageModel) -> None:
    end = str(model.tokenizer.end_id)
    worker = Worker("a", random_model(), max_rows=1, max_waiting=1)
    with serving(worker) as served:
        post(served, "/v1/completions", prompt="The", max_tokens=5, logit_bias={end: -100})
        post(served, "/v1/completions", prompt=[1, 2, 3], max_tokens=7, logit_bias={end: -100}, stop=["never"])
        with pytest.raises(httpx.HTTPStatusError):
            post(served, "/v1/completions", n=0)
        body = {"prompt": "The", "max_tokens": 5, "stream": True, "logit_bias": {end: -100}}
        httpx.post(f"{served.url}/v1/completions", json=body, timeout=60).raise_for_status()
        httpx.get(f"{served.url}/v1/models/a", timeout=60)
        httpx.get(f"{served.url}/v1/models/b", timeout=60)
        found = metrics(served)
        assert found["lit_lm_responses_total", "/v1/completions", "200"] == 3
        assert found["lit_lm_responses_total", "/v1/completions", "400"] == 1
        assert found["lit_lm_responses_total", "/v1/models/{name:path}", "404"] == 1
        assert found["lit_lm_generated_tokens_total", "a"] == 17
        assert found["lit_lm_prompt_tokens_total", "a"] == 2 * len(model.tokenizer.encode("The")) + 3
        assert found["lit_lm_completion_seconds_count", "a"] == 3
        assert found["lit_lm_time_to_first_token_seconds_count", "a"] == 1
        assert found["lit_lm_running_continuations", "a"] == found["lit_lm_waiting_requests", "a"] == 0


def test_health(served: Served) -> None:
    assert httpx.get(f"{served.url}/health", timeout=60).json() == {"status": "ok"}
