"""Requests byte by byte."""

import json
import socket
import time
from http.client import HTTPResponse
from typing import Any

import httpx
from helpers.serving import Served

JSON = {"Content-Type": "application/json"}
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
Case = tuple[str, str, dict[str, str], bytes]

"""Method, path, headers and body."""


def post(path: str, body: bytes, **headers: str) -> Case:
    return "POST", path, JSON | {name.replace("_", "-"): value for name, value in headers.items()}, body


def connected(served: Served) -> socket.socket:
    return socket.create_connection(served.address, timeout=60)


def head(method: str, path: str, headers: dict[str, Any]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def message(case: Case) -> bytes:
    method, path, headers, body = case
    return head(method, path, {"Connection": "close", "Content-Length": len(body)} | headers) + body


def exchange(served: Served, *parts: bytes, seconds: float = 0) -> tuple[int, httpx.Headers, bytes]:
    """Send parts, with pauses between them; return status, headers and body of the answer."""
    with connected(served) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(seconds)
        return answer(connection)


def answer(connection: socket.socket) -> tuple[int, httpx.Headers, bytes]:
    response = HTTPResponse(connection)
    response.begin()
    return response.status, httpx.Headers(response.getheaders()), response.read()


def check_refused(status: int, body: bytes) -> dict[str, Any]:
    """Check that an answer is an error of the client's in OpenAI's form."""
    assert 400 <= status < 500
    error: dict[str, Any] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert 5 < len(error["message"]) < 1000
    return error
