"""Clients that go before they have their answer, crowds, and the end of the server."""

import json
import socket
import struct
import time
from contextlib import closing, suppress
from typing import Any

import pytest
from helpers.serving import Served, random_model, serving, wait_until
from helpers.sockets import COMPLETIONS, JSON, answer, check_refused, connected, exchange, head, message, post
from serve_crowd import crowd

from lit_lm.inference.language_model import LanguageModel
from lit_lm.serve.worker import Worker


def unending(model: LanguageModel, **options: Any) -> dict[str, Any]:
    """A request that takes a while."""
    return {"prompt": "a", "max_tokens": 100, "logit_bias": {str(model.tokenizer.end_id): -100}, **options}


def begin(served: Served, **options: Any) -> socket.socket:
    connection = connected(served)
    body = json.dumps(unending(served.workers[0].model, **options)).encode()
    connection.sendall(message(post(COMPLETIONS, body)))
    return connection


def hang_up(connection: socket.socket, how: str) -> None:
    if how == "RST":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif how == "FIN":
        connection.shutdown(socket.SHUT_WR)
    connection.close()


@pytest.mark.parametrize("how", ["FIN", "RST", "close"])
@pytest.mark.parametrize(
    "options", [{"stream": True}, {}, {"n": 4, "stream": True}, {"prompt": ["a", "b"], "n": 2}], ids=str
)
def test_a_hang_up_frees_the_rows_at_once(served: Served, options: dict[str, Any], how: str) -> None:
    worker, started = served.workers[0], time.monotonic()
    with served.slowly(0.2):  # 20 seconds in all
        connection = begin(served, **options)
        wait_until(lambda: worker.num_rows)
        if "stream" in options:
            connection.recv(1000)
        hang_up(connection, how)
        wait_until(lambda: not worker.num_rows)
        assert time.monotonic() - started < 10


def test_a_waiting_request_that_hangs_up_is_forgotten(served: Served) -> None:
    worker = served.workers[0]
    with served.slowly(0.05), closing(begin(served, n=8)) as first:
        wait_until(lambda: worker.num_rows)
        waiting = [begin(served, stream=number > 1, n=8) for number in range(4)]
        wait_until(lambda: worker.num_waiting == 4)
        for number in (2, 1):
            waiting.pop(number).close()
        wait_until(lambda: worker.num_waiting == 2)
        assert worker.num_rows == 8
        for connection in (*waiting, first):
            connection.close()
        wait_until(lambda: not worker.num_rows)


def test_a_hang_up_while_the_prompt_is_computed(served: Served) -> None:
    worker = served.workers[0]
    with served.slowly(0.2):
        with worker.lock:
            connection = begin(served, prompt="The cat", echo=True, logprobs=1)
            wait_until(lambda: worker.num_rows)
            connection.close()
            time.sleep(0.1)
        started = time.monotonic()
        wait_until(lambda: not worker.num_rows)
        assert time.monotonic() - started < 10


def test_a_reader_who_does_not_read_holds_nobody_up(served: Served, good_text: str) -> None:
    with closing(begin(served, stream=True, n=8, logprobs=20)):
        body = b'{"prompt": "The", "seed": 1, "max_tokens": 8}'
        _, _, content = exchange(served, message(post(COMPLETIONS, body)))
        assert json.loads(content)["choices"][0]["text"] == good_text
        wait_until(lambda: not served.workers[0].num_rows)


def test_a_crowd_loses_nothing(served: Served, model: LanguageModel) -> None:
    """64 clients at once, of whom some hang up."""

    def expected(seed: int) -> str:
        return model.generate("The cat", seed=seed, temperature=1.0, top_p=1.0, max_new_tokens=24).continuation

    answered, hung_up = crowd(
        served.url, {"prompt": "The cat", "max_tokens": 24}, expected, clients=64, requests=400, seeds=20
    )
    assert answered + hung_up == 400
    assert hung_up > 50


def test_too_many_are_asked_to_come_again() -> None:
    worker = Worker("plain", random_model(), max_rows=1, max_waiting=2)
    with serving(worker) as served, served.slowly(0.1):
        connections = [begin(served)]
        wait_until(lambda: worker.num_rows)
        connections += [begin(served), begin(served)]
        wait_until(lambda: worker.num_waiting == 2)
        for body in (b'{"prompt": "a"}', b'{"prompt": "a", "stream": true}'):
            status, headers, content = exchange(served, message(post(COMPLETIONS, body)))
            assert (status, headers["retry-after"]) == (429, "1")
            assert check_refused(status, content)["code"] == "rate_limit_exceeded"
        connections[1].close()
        wait_until(lambda: worker.num_waiting == 1)
        connections[0].close()
        wait_until(lambda: (worker.num_rows, worker.num_waiting) == (1, 0))
        connections[2].close()


def test_a_shutdown_ends_requests_with_an_error() -> None:
    worker = Worker("plain", random_model(), max_rows=1, max_waiting=4)
    vars(worker.model)["generator"].engine.seconds = 0.05
    with serving(worker) as served:
        running = begin(served, stream=True)
        wait_until(lambda: worker.num_rows)
        waiting = begin(served)
        sending, silent = connected(served), connected(served)
        sending.sendall(head("POST", COMPLETIONS, JSON | {"Content-Length": 100}) + b"{")
        wait_until(lambda: (worker.num_rows, worker.num_waiting) == (1, 1))
    status, _, content = answer(waiting)
    assert status == 503
    assert json.loads(content)["error"]["message"] == "the server is shutting down"
    status, _, content = answer(running)
    *_, error, done, end = content.decode().split("\n\n")
    assert (status, done, end) == (200, "data: [DONE]", "")
    assert json.loads(error.removeprefix("data: "))["error"]["type"] == "server_error"
    for connection in (sending, silent):
        connection.settimeout(60)
        with suppress(ConnectionResetError):
            assert connection.recv(1000) == b""
    assert [record.getMessage() for record in served.logged] == []
    for connection in (running, waiting, sending, silent):
        connection.close()
