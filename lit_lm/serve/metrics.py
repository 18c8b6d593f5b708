"""What the server counts, in Prometheus' text form."""

import time
from collections.abc import Sequence
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lit_lm.serve.completions import Completion
from lit_lm.serve.worker import Worker

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
"""Upper bounds of the classes of durations."""


class Metrics:
    """Counters, gauges and histograms of one server."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._registry = registry = CollectorRegistry()
        names = ["model"]
        self._responses = Counter("lit_lm_responses", "Answered requests.", ["path", "status"], registry=registry)
        self._prompt = Counter("lit_lm_prompt_tokens", "Tokens of prompts.", names, registry=registry)
        self._generated = Counter("lit_lm_generated_tokens", "Generated tokens.", names, registry=registry)
        self._first = Histogram(
            "lit_lm_time_to_first_token_seconds",
            "From a request to the first text of a stream.",
            names,
            buckets=SECONDS,
            registry=registry,
        )
        self._whole = Histogram(
            "lit_lm_completion_seconds", "From a request to its end.", names, buckets=SECONDS, registry=registry
        )
        waiting = Gauge(
            "lit_lm_waiting_requests", "Requests that wait for room in the batch.", names, registry=registry
        )
        rows = Gauge("lit_lm_running_continuations", "Continuations in the batch.", names, registry=registry)
        for worker in workers:
            waiting.labels(worker.name).set_function(partial(getattr, worker, "num_waiting"))
            rows.labels(worker.name).set_function(partial(getattr, worker, "num_rows"))

    def text(self) -> bytes:
        """All values, as Prometheus reads them."""
        return generate_latest(self._registry)

    def responded(self, path: str, status: int) -> None:
        """Count a response; `path` is that of a route, so that there are only few."""
        self._responses.labels(path, str(status)).inc()

    def finished(self, completion: Completion, started: float, first: float | None) -> None:
        """Count a completion.

        Args:
            completion: The completion, ended or interrupted.
            started: When its request came, in seconds of `time.perf_counter`.
            first: When its first text was sent, if it was streamed.
        """
        name, usage = completion.worker.name, completion.usage()
        self._prompt.labels(name).inc(usage["prompt_tokens"])
        self._generated.labels(name).inc(usage["completion_tokens"])
        self._whole.labels(name).observe(time.perf_counter() - started)
        if first is not None:
            self._first.labels(name).observe(first - started)
