"""Clients of `lit-lm serve` that check what they get, and hang up now and then: for bench_serve.py and the tests."""

import asyncio
import json
import os
import random
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lit_lm.inference.language_model import LanguageModel

SOAK_CLIENTS, SOAK_SEEDS, SOAK_TOKENS = 64, 200, 64


class Refused(Exception):
    """An answer with another status than 200."""

    def __init__(self, status: int, content: bytes) -> None:
        super().__init__(f"status {status}: {content.decode(errors='replace')}")
        self.status = status


@asynccontextmanager
async def post(url: str, body: dict[str, Any]) -> AsyncIterator[asyncio.StreamReader]:
    """Ask for a completion. Yields the reader of the answer's body; leaving it hangs up.

    Raises:
        Refused: if the status is not 200.
    """
    address, content = urlsplit(url), json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=2**22)
    try:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode() + content)
        status = int((await reader.readline()).split()[1])
        await reader.readuntil(b"\r\n\r\n")
        if status != 200:
            raise Refused(status, await reader.read())
        yield reader
    finally:
        writer.close()


async def events(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """The objects of a stream. Lines between them are of the protocol."""
    async for line in reader:
        if line.startswith(b"data: {"):
            yield json.loads(line[6:])


def crowd(
    url: str,
    body: dict[str, Any],
    expected: Callable[[int], str],
    *,
    clients: int,
    seeds: int,
    requests: int | None = None,
    seconds: float = float("inf"),
) -> tuple[int, int]:
    """Let clients ask at once, of whom a quarter hang up, for a number of requests, or of seconds.

    Args:
        url: Address of the server.
        body: What they ask for, without a seed.
        expected: The right text for a seed.
        clients, seeds: Number of each.
        requests: Number of requests; None: no limit.
        seconds: Time after which no more requests are sent.

    Returns:
        The number of complete answers, and of hang-ups.

    Raises:
        AssertionError: if an answer is wrong.
    """
    texts = [expected(seed) for seed in range(seeds)]
    numbers, deadline, found = count(), time.monotonic() + seconds, [0, 0]

    async def client() -> None:
        for number in numbers:
            if (requests is not None and number >= requests) or time.monotonic() > deadline:
                return
            rng = random.Random(number)
            seed, streamed, patience = (
                rng.randrange(seeds),
                rng.random() < 0.5,
                rng.choice([None, None, None, rng.randint(1, 9)]),
            )
            while (complete := await _answered(url, body | {"seed": seed}, texts[seed], streamed, patience)) is None:
                await asyncio.sleep(0.5)
            found[not complete] += 1

    async def main() -> None:
        await asyncio.gather(*(client() for _ in range(clients)))

    asyncio.run(main())
    return found[0], found[1]


async def _answered(url: str, body: dict[str, Any], text: str, streamed: bool, patience: int | None) -> bool | None:
    """Ask, and compare the answer with the right text. With patience, hang up after so many events or milliseconds.

    Returns whether the answer was complete; None if the server had no room.
    """
    try:
        async with asyncio.timeout(120 if streamed or not patience else patience / 1e3):
            async with post(url, body | {"stream": streamed}) as reader:
                if not streamed:
                    choices = json.loads(await reader.read())["choices"]
                    assert choices[0]["text"] == text, (body, text, choices)
                    return True
                found = ""
                async for number, event in _numbered(events(reader)):
                    if number == patience:
                        return False
                    found += event["choices"][0]["text"]
                assert found == text, (body, text, found)
                return True
    except TimeoutError:
        if streamed or not patience:
            raise AssertionError(f"no answer to {body}") from None
        return False
    except Refused as error:
        if error.status == 429:
            return None
        raise AssertionError(str(error)) from None


async def _numbered(items: AsyncIterator[dict[str, Any]]) -> AsyncIterator[tuple[int, dict[str, Any]]]:
    number = 0
    async for item in items:
        yield number, item
        number += 1


def soak(process: subprocess.Popen[str], url: str, model: LanguageModel, seconds: float) -> str:
    """Let a crowd ask the server of a process, and watch its memory."""
    memory: list[int] = []
    body = {"prompt": "Once upon a time", "max_tokens": SOAK_TOKENS}

    def expected(seed: int) -> str:
        options: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": SOAK_TOKENS}
        return model.generate(str(body["prompt"]), seed=seed, **options).continuation

    answered = hung_up = 0
    parts = 10
    for _ in range(parts):
        found = crowd(url, body, expected, clients=SOAK_CLIENTS, seeds=SOAK_SEEDS, seconds=seconds / parts)
        answered, hung_up = answered + found[0], hung_up + found[1]
        memory.append(_resident(process.pid))
    shown = ", ".join(f"{each / 2**20:.0f}" for each in memory)
    return f"{answered:,} complete answers, all right; {hung_up:,} hang-ups; MB of memory in ten parts: {shown}"


def _resident(pid: int) -> int:
    """Bytes of memory of a process, on Linux."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
