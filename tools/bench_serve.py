"""Benchmark of `lit-lm serve` beside other servers of OpenAI's API, and a soak test of it.

    python tools/bench_serve.py RUN --transformers transformers --peer llama.cpp=http://127.0.0.1:8001
    python tools/bench_serve.py RUN --soak 60

All servers continue the same prompts at temperature 0, as streams, for 1, 4 and 16 clients at once. They take turns, so
that other load on the machine affects all of them. Values are medians over the rounds, with minimum and maximum; ratios
are medians of the ratios in each round. The client is a few lines of its own: those of libraries take longer for a
token than a small model does.
"""

import argparse
import asyncio
import json
import os
import random
import re
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lit_lm.checkpoint import read_checkpoint
from lit_lm.data.stories import stories
from lit_lm.inference.language_model import LanguageModel, load
from lit_lm.interop.export import export
from lit_lm.runs import find_checkpoint

CLIENTS = (1, 4, 16)
REQUESTS = 4
"""Requests of each client in a turn, one after the other."""
WORDS = 8
"""Of each prompt, which is the beginning of a story."""
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


# ---- speed


@dataclass
class Answer:
    """What a client got."""

    text: str
    num_tokens: int
    first: float
    """Seconds to the first text."""


async def ask(url: str, body: dict[str, Any]) -> Answer:
    """Read a completion as a stream; its tokens are counted by the server, or else by its events."""
    started, first, texts, num_tokens = time.perf_counter(), 0.0, list[str](), 0
    async with post(url, body | {"stream": True, "stream_options": {"include_usage": True}}) as reader:
        async for event in events(reader):
            if "error" in event:
                raise Refused(200, json.dumps(event).encode())
            new = "".join(choice.get("text") or "" for choice in event["choices"])
            first = first or (time.perf_counter() - started if new else 0.0)
            texts += [new] if new else []
            num_tokens = (event.get("usage") or {}).get("completion_tokens", num_tokens)
    return Answer("".join(texts), num_tokens or len(texts), first)


@dataclass
class Contender:
    """A server, and what was measured, by the number of clients."""

    name: str
    url: str
    model: str | None = None
    """Name of the model in requests, if the server needs it."""
    rates: dict[int, list[float]] = field(default_factory=dict)
    """Tokens per second of all clients together, in each round."""
    firsts: dict[int, list[float]] = field(default_factory=dict)
    """Seconds to the first text, median of the requests, in each round."""
    texts: list[str] = field(default_factory=list)
    """Of the last turn, without an unfinished character at the end, which some servers leave out."""

    async def turn(self, prompts: Sequence[str], max_tokens: int, clients: int) -> tuple[float, float]:
        """Answer all prompts; return tokens per second and seconds to the first text."""
        shared = {"max_tokens": max_tokens, "temperature": 0} | ({"model": self.model} if self.model else {})

        async def client(number: int) -> list[Answer]:
            return [await ask(self.url, shared | {"prompt": prompt}) for prompt in prompts[number::clients]]

        started = time.perf_counter()
        answers = [each for some in await asyncio.gather(*map(client, range(clients))) for each in some]
        taken = time.perf_counter() - started
        self.texts = sorted(answer.text.rstrip("\ufffd") for answer in answers)
        return sum(answer.num_tokens for answer in answers) / taken, statistics.median(each.first for each in answers)


def measure(contenders: Sequence[Contender], rounds: int, max_tokens: int, clients: Sequence[int]) -> None:
    """Measure all contenders by turns; the first round is a warm-up."""
    told = dict.fromkeys(" ".join(story.split()[:WORDS]) for story in stories("validation"))  # all different
    prompts = list(islice(cycle(told), REQUESTS * max(clients)))
    for number in range(rounds + 1):
        for size in clients:
            for each in contenders:
                rate, first = asyncio.run(each.turn(prompts[: REQUESTS * size], max_tokens, size))
                if number:
                    each.rates.setdefault(size, []).append(rate)
                    each.firsts.setdefault(size, []).append(first)
                print(f"round {number}: {each.name}, {size} clients: {rate:,.0f}", file=sys.stderr, flush=True)


def table(contenders: Sequence[Contender]) -> str:
    """A Markdown table; ratios are to the first contender."""
    lines = [
        "| clients | server | tokens a second (least to most) | ratio | first token, ms | same texts |",
        "|---|---|---|---|---|---|",
    ]
    for clients in contenders[0].rates:
        for each in contenders:
            rates, firsts = each.rates[clients], each.firsts[clients]
            ratio = statistics.median(a / b for a, b in zip(rates, contenders[0].rates[clients], strict=True))
            spread = f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"
            same = "yes" if each.texts == contenders[0].texts else "no"
            first = 1e3 * statistics.median(firsts)
            lines.append(f"| {clients} | {each.name} | {spread} | {ratio:.2f} | {first:.1f} | {same} |")
    return "\n".join(lines)


# ---- crowds


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


# ---- the servers


@contextmanager
def our_server(checkpoint: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`lit-lm serve` on a free port; its process and address."""
    command = [sys.executable, "-m", "lit_lm", "serve", str(checkpoint), "--port=0", "--device=cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = re.search(r"http://[\d.:]+", process.stdout.readline())
            if address is None:
                raise SystemExit("lit-lm serve did not start")
            yield process, address[0]
        finally:
            process.terminate()


@contextmanager
def transformers(command: str, folder: Path, *options: str) -> Iterator[Contender]:
    """`transformers serve` of an exported model."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    arguments = [*shlex.split(command), "serve", str(folder), "--host=127.0.0.1", f"--port={port}"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [*arguments, "--device=cpu", "--dtype=float32", *options], env=environment, stdout=sys.stderr
    ) as process:
        try:
            wait_for("127.0.0.1", port)
            yield Contender(" ".join(("transformers serve", *options)), f"http://127.0.0.1:{port}", str(folder))
        finally:
            process.terminate()


def wait_for(host: str, port: int, seconds: float = 300) -> None:
    """Wait until a server accepts connections.

    Raises:
        SystemExit: if it does not in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port)).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise SystemExit(f"no server at {host}:{port} after {seconds:.0f} seconds") from None
            time.sleep(0.2)


def bench(checkpoint: Path, command: str, peers: Sequence[str], rounds: int, max_tokens: int, output: Path) -> str:
    """Measure and return a Markdown table; all values are written to `output`."""
    with ExitStack() as stack:
        _, url = stack.enter_context(our_server(checkpoint))
        contenders = [Contender("lit-lm serve", url)]
        if command:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "model"
            export(read_checkpoint(checkpoint), "hf", folder, "float32")
            for options in ([], ["--continuous-batching"]):
                contenders.append(stack.enter_context(transformers(command, folder, *options)))
        for name, _, url in (peer.partition("=") for peer in peers):
            contenders.append(Contender(name, url))
        measure(contenders, rounds, max_tokens, CLIENTS)
    output.mkdir(parents=True, exist_ok=True)
    content = [{"name": each.name, "rates": each.rates, "firsts": each.firsts} for each in contenders]
    (output / "serve.json").write_text(json.dumps(content))
    return table(contenders)


def main(args: Sequence[str] | None = None) -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="checkpoint, or folder of a run")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--max_tokens", type=int, default=128, help="of each completion; default: 128")
    parser.add_argument(
        "--transformers", default="", metavar="COMMAND", help="the command `transformers`, with its extra"
    )
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=URL",
        help="a server of the same model that runs. Repeatable",
    )
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="soak lit-lm instead")
    parser.add_argument("--output", type=Path, default=Path("logs/bench"), help="folder; default: %(default)s")
    options = parser.parse_args(args)
    checkpoint = find_checkpoint(options.run)
    if options.soak:
        with our_server(checkpoint) as (process, url):
            print(soak(process, url, load(checkpoint, device="cpu"), options.soak))
    else:
        print(bench(checkpoint, options.transformers, options.peer, options.rounds, options.max_tokens, options.output))


if __name__ == "__main__":
    main()
