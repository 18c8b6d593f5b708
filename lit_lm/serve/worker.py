"""One model, and the thread in which it continues the texts of many requests at once.

Requests join the running batch between two tokens, first come, first served, and leave it when they end.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from lit_lm.inference.batch import Batch, Row, make_rows
from lit_lm.inference.continuation import Ended, Token
from lit_lm.inference.generate import likeliest
from lit_lm.inference.language_model import LanguageModel
from lit_lm.inference.sampling import SamplingConfig
from lit_lm.inference.text import Piece, Pieces
from lit_lm.memory import check_memory
from lit_lm.model.cost import cache_memory

log = logging.getLogger(__name__)


class TooManyWaiting(Exception):
    """As many requests wait as may wait."""


class Stopped(Exception):
    """The server is shutting down, or the model failed."""


class Event(NamedTuple):
    """New text of a continuation."""

    number: int
    """Of the continuation, within its request."""
    pieces: Sequence[Piece]
    ended: Ended | None
    """Why it ended, with the last event of a continuation."""


@dataclass(eq=False)
class _Continuation:
    number: int
    row: Row
    pieces: Pieces


@dataclass(eq=False)
class Job:
    """The continuations of one request."""

    prompts: Sequence[Sequence[int]]
    sampling: SamplingConfig
    seed: int
    stop: Sequence[str] = ()
    num_alternatives: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    continuations: list[_Continuation] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self.cancelled = False

    @property
    def num_tokens(self) -> int:
        """Number of tokens generated so far."""
        return sum(len(each.row.ids) for each in self.continuations)

    async def events(self) -> AsyncIterator[Event]:
        """Yield the events until all continuations have ended. Closing the iterator cancels the job.

        Raises:
            Stopped: if the model failed, or the server is shutting down.
        """
        left = len(self.continuations)
        try:
            while left:
                event = await self._events.get()
                if isinstance(event, Exception):
                    raise event
                left -= event.ended is not None
                yield event
        finally:
            self.cancelled = True

    def put(self, event: Event | Exception) -> None:
        """Add an event, from the model's thread."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)


class Worker:
    """Runs one model."""

    def __init__(self, name: str, model: LanguageModel, *, max_rows: int, max_waiting: int) -> None:
        """
        Args:
            name: Name of the model in requests.
            model: The model.
            max_rows: Maximum number of continuations at a time.
            max_waiting: Maximum number of requests that wait until they can join.

        Raises:
            ValueError: if the rows do not fit into the device's memory.
        """
        check_memory(
            cache_memory(model.config, max_rows),
            f"{max_rows} rows with a context of {model.config.context_length:,} tokens",
            "serve fewer at once: reduce max_rows",
            model.generator.engine.device.type,
        )
        self.name, self.model = name, model
        self.max_rows, self.max_waiting = max_rows, max_waiting
        self.lock = threading.Lock()
        """Held while the model computes; hold it for other uses of the model."""
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._running: dict[Row, tuple[Job, _Continuation]] = {}
        self._stopping = False
        self._batch: Batch | None = self._new_batch()  # here, so that too little memory is an error at the start
        self._thread = threading.Thread(target=self._run, name=f"model {name}", daemon=True)

    @property
    def num_waiting(self) -> int:
        """Number of requests that have not joined the batch."""
        return len(self._waiting)

    @property
    def num_rows(self) -> int:
        """Number of continuations in the batch."""
        return len(self._running)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the token in progress; unfinished requests raise `Stopped`."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def submit(self, job: Job) -> None:
        """Add a job.

        Raises:
            ValueError: if a prompt does not fit into the context, or the job has more rows than the batch.
            TooManyWaiting: if max_waiting jobs wait.
            Stopped: if the server is shutting down.
        """
        config, tokenizer = self.model.config, self.model.tokenizer
        count = len(job.prompts) * job.sampling.num_samples
        if count > self.max_rows:
            raise ValueError(f"the request has {count} continuations; the server allows {self.max_rows} at a time")
        rows = [
            (row, prompt)
            for prompt in job.prompts
            for row in make_rows(config, prompt, job.sampling, job.seed, None, job.logit_bias)
        ]
        job.continuations = [
            _Continuation(number, row, Pieces(tokenizer, prompt, job.stop)) for number, (row, prompt) in enumerate(rows)
        ]
        with self._changed:
            if self._stopping:
                raise Stopped("the server is shutting down")
            if len(self._waiting) >= self.max_waiting:
                raise TooManyWaiting
            self._waiting.append(job)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._waiting or self._running)
                if self._stopping:
                    break
            try:
                self._batch = self._batch or self._new_batch()
                with self._changed:
                    self._admit(self._batch)
                if self._batch.active():
                    with self.lock:
                        logits, normalizers = self._batch.step()
                    self._report(self._batch.rows, logits, normalizers)
            except Exception as error:
                log.exception(f"{self.name} failed; the requests in progress end with an error")
                self._fail(Stopped(f"the model failed: {error}"))
                self._batch = None  # the next one is made when its memory is free
            self._running = {row: owner for row, owner in self._running.items() if row.ended is None}
        self._fail(Stopped("the server is shutting down"))

    def _new_batch(self) -> Batch:
        return Batch(self.model.generator.engine, self.max_rows, self.model.tokenizer.end_id)

    def _admit(self, batch: Batch) -> None:
        """Drop the requests that were cancelled, and take in those that wait, in order, while there is room."""
        for row, (job, _) in self._running.items():
            if job.cancelled:
                row.ended = "stop"
        self._running = {row: owner for row, owner in self._running.items() if row.ended is None}
        self._waiting = deque(job for job in self._waiting if not job.cancelled)
        while self._waiting and len(self._running) + len(self._waiting[0].continuations) <= self.max_rows:
            job = self._waiting.popleft()
            self._running |= {each.row: (job, each) for each in job.continuations}
            batch.join([each.row for each in job.continuations])

    def _report(self, rows: Sequence[Row], logits: Tensor, normalizers: Tensor) -> None:
        """Pass on the new text of each row, and an end-of-text token, which has none: clients count on it."""
        end_id = self.model.tokenizer.end_id
        for number, row in enumerate(rows):
            job, continuation = self._running[row]
            wanted, pieces = job.num_alternatives, list[Piece]()
            alternatives = likeliest(logits[number], normalizers[number], wanted) if wanted else ()
            if row.ended != "end":
                pieces = continuation.pieces.feed(Token(row.ids[-1], row.log_probabilities[-1], alternatives))
            if row.ended is not None and not continuation.pieces.stopped:
                pieces += continuation.pieces.finish()
            if continuation.pieces.stopped:
                row.ended = "stop"
            elif row.ended == "end":
                log_probability = float(logits[number, end_id] - normalizers[number])
                pieces.append(Piece("", (Token(end_id, log_probability, alternatives),)))
            if pieces or row.ended is not None:
                job.put(Event(continuation.number, pieces, row.ended))

    def _fail(self, error: Exception) -> None:
        """End all requests with an error."""
        with self._changed:
            jobs = {*self._waiting, *(job for job, _ in self._running.values())}
            self._waiting.clear()
            self._running.clear()
        for job in jobs:
            job.put(error)
