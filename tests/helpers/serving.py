"""A server on a real socket, in a thread of the test's process."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from helpers.models import make
from helpers.texts import DOCUMENTS

from lit_lm.inference.language_model import LanguageModel
from lit_lm.inference.text import TextGenerator
from lit_lm.serve.app import make_app
from lit_lm.serve.http_server import HTTPServer
from lit_lm.serve.worker import Worker
from lit_lm.tokenizer.tokenizer import Tokenizer

CONTEXT = 128
UNKNOWN = 8
"""Number of ids that the tokenizer does not know."""
TEMPLATE = """\
{%- for message in messages -%}
<|{{ message.role }}|>{{ message.content }}
{%- endfor -%}
<|assistant|>"""


class Slow:
    """An engine whose steps take a while."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.seconds = engine, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def step(self, *args: Any) -> Any:
        time.sleep(self.seconds)
        return self.engine.step(*args)


def random_model(chat_template: str | None = None) -> LanguageModel:
    """A model with random weights, always the same, whose engine is `Slow`. It has more ids than its tokenizer."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(DOCUMENTS, 400, special_tokens=["<|user|>", "<|assistant|>"])
    transformer = make(vocab_size=tokenizer.vocab_size + UNKNOWN, context_length=CONTEXT)
    model = LanguageModel(transformer, tokenizer, chat_template=chat_template)
    model.generator = TextGenerator(tokenizer, Slow(model.generator.engine))
    return model


@dataclass
class Served(logging.Handler):
    """A server that runs, and what it has logged."""

    url: str
    workers: Sequence[Worker]
    logged: list[logging.LogRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    __hash__ = logging.Handler.__hash__

    def emit(self, record: logging.LogRecord) -> None:
        self.logged.append(record)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    @contextmanager
    def slowly(self, seconds: float) -> Iterator[None]:
        """Let each token of the models take this time."""
        engines: list[Any] = [worker.model.generator.engine for worker in self.workers]
        for engine in engines:
            engine.seconds = seconds
        try:
            yield
        finally:
            for engine in engines:
                engine.seconds = 0.0


@contextmanager
def serving(*workers: Worker, **options: Any) -> Iterator[Served]:
    """Run a server of these workers, which end with it; `options` are those of `make_app`."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = HTTPServer(make_app(workers, **options), workers)
    served = Served(f"http://127.0.0.1:{listener.getsockname()[1]}", workers)
    logging.getLogger("uvicorn").handlers = [served]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield served
    finally:
        server.should_exit = True
        thread.join(60)
    assert not thread.is_alive()


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait until something is true; fail if it is not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.002)
