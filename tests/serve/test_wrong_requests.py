"""Wrong requests are refused in OpenAI's form."""

import time
from typing import Any

import pytest
from helpers.serving import Served
from helpers.sockets import COMPLETIONS, check_refused, exchange, head, message, post
from helpers.wrong_requests import CASES


def test_there_are_many_wrong_requests() -> None:
    assert len(CASES) > 400


@pytest.mark.parametrize("group", range(20))
def test_a_wrong_request_is_refused(served: Served, group: int) -> None:
    problems = []
    for name, case in list(CASES.items())[group::20]:
        started = time.perf_counter()
        status, headers, body = exchange(served, message(case))
        try:
            check_refused(status, body)
            assert headers["content-type"] == "application/json"
            assert time.perf_counter() - started < 20
        except (AssertionError, ValueError, KeyError) as error:
            problems.append((name, status, body[:200], error))
    assert problems == []


def test_errors_name_what_is_wrong(served: Served) -> None:
    for body, param, words in (
        (b'{"tempature": 1}', "tempature", "there is no parameter tempature"),
        (b'{"n": 0}', "n", "n is 0: Input should be greater than or equal to 1"),
        (b'{"prompt": "a", "model": "b"}', "model", "there is no model b; there is plain, chatty"),
        (b'{"prompt": "\\ud83d"}', "prompt", "prompt"),
        (b'{"prompt": [7, 99999999]}', "prompt", "the prompt has 99999999; token ids range from 0 to"),
    ):
        status, _, content = exchange(served, message(post(COMPLETIONS, body)))
        error = check_refused(status, content)
        assert error["param"] == param
        assert words in error["message"]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("content_type", ["application/json", "text/plain"])
def test_a_body_of_10_mb_is_received_and_refused(served: Served, chunked: bool, content_type: str) -> None:
    body = b'{"prompt": "' + b"a" * 10_000_000 + b'"}'
    headers: dict[str, Any] = {"Content-Type": content_type, "Connection": "close"}
    if chunked:
        headers["Transfer-Encoding"] = "chunked"
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    else:
        headers["Content-Length"] = len(body)
    status, _, content = exchange(served, head("POST", COMPLETIONS, headers), body)
    assert status == 413
    check_refused(status, content)
