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
import re
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from serve_crowd import Refused, events, post, soak

from lit_lm.checkpoint import read_checkpoint
from lit_lm.data.stories import stories
from lit_lm.inference.language_model import load
from lit_lm.interop.export import export
from lit_lm.runs import find_checkpoint

CLIENTS = (1, 4, 16)
REQUESTS = 4
"""Requests of each client in a turn, one after the other."""
WORDS = 8
"""Of each prompt, which is the beginning of a story."""


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
    texts: dict[int, list[list[str]]] = field(default_factory=dict)
    """Of each round, without an unfinished character at the end, which some servers leave out."""

    async def turn(self, prompts: Sequence[str], max_tokens: int, clients: int) -> tuple[float, float]:
        """Answer all prompts; return tokens per second and seconds to the first text."""
        shared = {"max_tokens": max_tokens, "temperature": 0} | ({"model": self.model} if self.model else {})

        async def client(number: int) -> list[Answer]:
            return [await ask(self.url, shared | {"prompt": prompt}) for prompt in prompts[number::clients]]

        started = time.perf_counter()
        answers = [each for some in await asyncio.gather(*map(client, range(clients))) for each in some]
        taken = time.perf_counter() - started
        self.texts.setdefault(clients, []).append(sorted(answer.text.rstrip("\ufffd") for answer in answers))
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
        "| clients | server | tokens/s (min to max) | ratio | first token, ms | same texts |",
        "|---|---|---|---|---|---|",
    ]
    for clients in contenders[0].rates:
        for each in contenders:
            rates, firsts = each.rates[clients], each.firsts[clients]
            ratio = statistics.median(a / b for a, b in zip(rates, contenders[0].rates[clients], strict=True))
            spread = f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"
            same = "yes" if each.texts[clients] == contenders[0].texts[clients] else "no"
            first = 1e3 * statistics.median(firsts)
            lines.append(f"| {clients} | {each.name} | {spread} | {ratio:.2f} | {first:.1f} | {same} |")
    return "\n".join(lines)


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
