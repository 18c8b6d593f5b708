"""Who may use the server, and what its page may do."""

from pathlib import Path

import httpx
import pytest
from helpers.serving import Served, serving
from helpers.sockets import COMPLETIONS

from lit_lm.inference.language_model import LanguageModel
from lit_lm.serve import app
from lit_lm.serve.worker import Worker


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil", "", "[::2]"]
)
def test_a_foreign_name_of_this_machine_is_refused(model: LanguageModel, host: str) -> None:
    """Its pages could reach the server by DNS rebinding."""
    with serving(
        Worker("plain", model, max_rows=1, max_waiting=1), hosts=["localhost", "127.0.0.1", "[::1]"]
    ) as served:
        for path in ("/", "/v1/models"):
            answer = httpx.get(served.url + path, headers={"Host": host}, timeout=60)
            assert answer.status_code == 400
        for own in ("127.0.0.1", "localhost:8000", "[::1]:8000"):
            assert httpx.get(f"{served.url}/v1/models", headers={"Host": own}, timeout=60).status_code == 200


def test_pages_of_other_sites_are_not_let_in(served: Served) -> None:
    origin = {"Origin": "https://example.org"}
    preflight = origin | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    for answer in (
        httpx.options(served.url + COMPLETIONS, headers=preflight, timeout=60),
        httpx.post(served.url + COMPLETIONS, headers=origin, json={"max_tokens": 1}, timeout=60),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_pages_of_other_sites_can_be_let_in(model: LanguageModel) -> None:
    worker = Worker("plain", model, max_rows=1, max_waiting=1)
    with serving(worker, cors_origins=["https://example.org"]) as served:
        for origin, allowed in (("https://example.org", "https://example.org"), ("https://evil.example", None)):
            answer = httpx.get(f"{served.url}/v1/models", headers={"Origin": origin}, timeout=60)
            assert answer.headers.get("access-control-allow-origin") == allowed


def test_the_page_may_load_nothing_from_elsewhere(served: Served) -> None:
    answer = httpx.get(served.url, timeout=60)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    for file in Path(app.__file__).with_name("page").iterdir():
        answer = httpx.get(f"{served.url}/page/{file.name}", timeout=60)
        assert (answer.status_code, answer.content) == (200, file.read_bytes())
        assert "content-security-policy" in answer.headers
