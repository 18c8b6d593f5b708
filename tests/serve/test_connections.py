"""Slow, broken and half-closed connections, and what is not HTTP."""

import json
import random
import socket
import struct
import time
from contextlib import suppress
from http.client import parse_headers

import pytest
from helpers.serving import CONTEXT, Served
from helpers.sockets import COMPLETIONS, JSON, check_refused, connected, exchange, head, message, post

from lit_lm.serve import http_server, requests


def test_a_slow_sender_is_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "BODY_SECONDS", 0.3)
    begun = head("POST", COMPLETIONS, JSON | {"Content-Length": 10**12})
    for parts in ([b'{"prompt":'], [bytes([letter]) for letter in b'{"prompt": "a'] * 2, []):
        status, _, content = exchange(served, begun, *parts, seconds=0.03)
        assert status == 408
        check_refused(status, content)


def test_a_sender_may_take_its_time(served: Served, good_text: str) -> None:
    parts = message(post(COMPLETIONS, b'{"prompt": "The", "seed": 1, "max_tokens": 8}'))
    third = len(parts) // 3
    status, _, content = exchange(served, parts[:third], parts[third:-9], parts[-9:], seconds=0.1)
    assert (status, json.loads(content)["choices"][0]["text"]) == (200, good_text)


GARBAGE = {
    "random bytes": random.Random(0).randbytes(1000),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "lines": b"\n" * 1000,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "unknown protocol": b"GET / HTTQ/1.1\r\nHost: a\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "long line": b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "long header": b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 50_000 + b"\r\n",
    "NUL in a header": b"GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n",
    "no such length": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na",
    "bad chunks": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "unknown encoding": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\nxyz\r\n",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
@pytest.mark.parametrize("half_closed", [False, True], ids=["open", "half-closed"])
def test_garbage_gets_400_or_nothing(
    served: Served, garbage: bytes, half_closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not HTTP is answered by uvicorn, in its own form."""
    monkeypatch.setattr(http_server, "IDLE_SECONDS", 0.5)
    with connected(served) as connection:
        try:
            connection.sendall(garbage)
            if half_closed:
                connection.shutdown(socket.SHUT_WR)
            received = b"".join(iter(lambda: connection.recv(65536), b""))
        except TimeoutError:  # it has not closed the connection
            raise
        except OSError:  # it has not read all of it
            received = b""
    assert not received or received.startswith((b"HTTP/1.1 4", b"HTTP/1.1 501"))


@pytest.mark.parametrize("before", [b"", message(("GET", "/health", {"Connection": "keep-alive"}, b""))])
def test_a_slow_sender_of_a_head_is_cut_off(served: Served, before: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "IDLE_SECONDS", 0.5)
    with connected(served) as connection, suppress(ConnectionError):
        connection.sendall(before + b"GET / HTTP/1.1\r\n")
        started = time.monotonic()
        while time.monotonic() < started + 30:
            connection.sendall(b"X: a\r\n")
            time.sleep(0.05)
        pytest.fail("it was not")


@pytest.mark.parametrize("cut", [1, 30, 100, -1])
def test_a_connection_closed_in_the_middle_of_a_request(served: Served, cut: int) -> None:
    content = message(post(COMPLETIONS, b'{"prompt": "The", "seed": 1, "max_tokens": 8}'))[:cut]
    with connected(served) as connection:  # half
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(65536)[:12] in (b"", b"HTTP/1.1 400")
    with connected(served) as connection:  # with RST
        connection.sendall(content)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_requests_one_after_the_other(served: Served, good_text: str) -> None:
    """Sent at once (pipelining), and after errors, on one connection."""
    good = post(COMPLETIONS, b'{"prompt": "The", "seed": 1, "max_tokens": 8}', Connection="keep-alive")
    bad = post(COMPLETIONS, b'{"prompt": 5}', Connection="keep-alive")
    with connected(served) as connection:
        connection.sendall(message(good) * 2)
        reader = connection.makefile("rb")
        for sent in (good, good, bad, good, bad):
            if sent is bad:
                connection.sendall(message(bad) + message(good))
            assert int(reader.readline().split()[1]) == (400 if sent is bad else 200)
            content = json.loads(reader.read(int(parse_headers(reader)["Content-Length"])))
            assert sent is bad or content["choices"][0]["text"] == good_text


def test_a_client_that_does_not_read_is_cut_off(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "IDLE_SECONDS", 0.5)
    body = json.dumps({"prompt": [1] * (CONTEXT - 1), "max_tokens": 0, "echo": True, "logprobs": 20}).encode()
    request = message(("POST", COMPLETIONS, JSON | {"Connection": "keep-alive"}, body + b" " * 100_000))
    with connected(served) as connection, suppress(ConnectionError):
        for _ in range(10_000):  # waits when the buffers of both sides are full
            connection.sendall(request)
        pytest.fail("it was not")
