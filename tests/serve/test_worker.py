"""The thread that continues the texts of many requests."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from helpers.serving import CONTEXT, Slow, random_model, wait_until

from lit_lm.inference.batch import Batch, Row
from lit_lm.inference.language_model import LanguageModel
from lit_lm.inference.sampling import SamplingConfig
from lit_lm.serve.worker import Job, Stopped, TooManyWaiting, Worker

NEW = 16


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return random_model()


@pytest.fixture
def engine(model: LanguageModel) -> Iterator[Slow]:
    engine: Any = model.generator.engine
    original = engine.engine
    yield engine
    engine.engine, engine.seconds = original, 0.0


@contextmanager
def running(model: LanguageModel, max_rows: int = 4, max_waiting: int = 100) -> Iterator[Worker]:
    worker = Worker("model", model, max_rows=max_rows, max_waiting=max_waiting)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


def job(model: LanguageModel, seed: int = 0, n: int = 1, prompt: str = "The", **options: Any) -> Job:
    sampling = SamplingConfig(max_new_tokens=NEW, temperature=1.0, top_p=1.0, num_samples=n)
    bias = {model.tokenizer.end_id: -100.0}
    return Job([model.tokenizer.encode(prompt)], sampling, seed, logit_bias=bias, **options)


async def read(job: Job) -> list[str]:
    """The whole texts of a job."""
    texts = [""] * len(job.continuations)
    async for event in job.events():
        texts[event.number] += "".join(piece.text for piece in event.pieces)
    return texts


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(limited())


def test_first_come_first_served(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request for which there is no room is not overtaken by a smaller one."""
    joined: list[str] = []
    join = Batch.join

    def recorded(self: Batch, rows: Sequence[Row]) -> None:
        joined.append(model.tokenizer.decode(rows[0].prompt))
        join(self, rows)

    monkeypatch.setattr(Batch, "join", recorded)

    async def main() -> None:
        jobs = [job(model, n=n, prompt=str(number)) for number, n in enumerate([3, 2, 1, 4, 1, 1, 1])]
        with running(model) as worker:
            for each in jobs:
                worker.submit(each)
            await asyncio.gather(*map(read, jobs))

    in_loop(main)
    assert joined == ["0", "1", "2", "3", "4", "5", "6"]


def test_there_are_never_more_rows_than_allowed(model: LanguageModel, engine: Slow) -> None:
    sizes: list[int] = []

    class Counting(Slow):
        def step(self, ids: Any, cache: Any) -> Any:
            sizes.append(len(ids))
            return self.engine.step(ids, cache)

    engine.engine = Counting(engine.engine)

    async def main() -> None:
        with running(model) as worker:
            jobs = [job(model, seed, 1 + seed % 4) for seed in range(20)]
            for each in jobs:
                worker.submit(each)
            assert worker.num_waiting <= 20
            found = await asyncio.gather(*map(read, jobs))
            wait_until(lambda: not worker.num_rows)
        with running(model) as worker:  # each alone
            for each, texts in zip(jobs, found, strict=True):
                alone = job(model, each.seed, len(texts))
                worker.submit(alone)
                assert await read(alone) == texts

    in_loop(main)
    assert max(sizes) == 4
    assert sizes.count(4) > 10  # rows join while others run


def test_what_cannot_be_answered_is_refused(model: LanguageModel) -> None:
    async def main() -> None:
        with running(model) as worker:
            for wrong, words in (
                (job(model, n=5), "5 continuations; the server allows 4 at a time"),
                (job(model, prompt="The cat " * CONTEXT), "do not fit into the context"),
                (job(model, prompt=""), "the prompt is empty"),
                (Job([[10**6]], SamplingConfig(max_new_tokens=1), 0), "the prompt has 1000000"),
            ):
                with pytest.raises(ValueError, match=words):
                    worker.submit(wrong)
            assert (worker.num_rows, worker.num_waiting) == (0, 0)

    in_loop(main)


def test_only_so_many_may_wait(model: LanguageModel, engine: Slow) -> None:
    async def main() -> None:
        engine.seconds = 0.05
        with running(model, max_rows=1, max_waiting=2) as worker:
            jobs = [job(model, seed) for seed in range(3)]
            for each in jobs:
                worker.submit(each)
                wait_until(lambda: worker.num_rows)
            with pytest.raises(TooManyWaiting):
                worker.submit(job(model))
            jobs[1].cancelled = True  # makes room, although it is not the next
            wait_until(lambda: worker.num_waiting == 1)
            worker.submit(job(model))
            engine.seconds = 0.0
            await read(jobs[2])

    in_loop(main)


def test_a_closed_reader_cancels_its_job(model: LanguageModel, engine: Slow) -> None:
    async def main() -> None:
        engine.seconds = 0.05
        with running(model) as worker:
            cancelled, other = job(model, n=3), job(model, seed=1)
            worker.submit(cancelled)
            worker.submit(other)
            events = cancelled.events()
            await anext(events)
            await events.aclose()
            wait_until(lambda: worker.num_rows == 1)
            assert cancelled.num_tokens < 3 * NEW
            engine.seconds = 0.0
            (text,) = await read(other)
            alone = job(model, seed=1)
            worker.submit(alone)
            assert await read(alone) == [text]

    in_loop(main)


def test_a_stop_string_frees_the_row(model: LanguageModel) -> None:
    async def main() -> None:
        with running(model) as worker:
            whole = job(model)
            worker.submit(whole)
            (text,) = await read(whole)
            stopped = job(model, stop=[text[3]])
            worker.submit(stopped)
            assert await read(stopped) == [text[: text.index(text[3])]]
            wait_until(lambda: not worker.num_rows)
            assert stopped.num_tokens < NEW

    in_loop(main)


class Broken(Slow):
    """An engine that fails once."""

    def __init__(self, engine: Any, where: str) -> None:
        super().__init__(engine)
        self.where = where

    def _or_fail(self, where: str, *args: Any) -> Any:
        if self.where == where:
            self.where = ""
            raise RuntimeError("out of order")
        return getattr(self.engine, where)(*args)

    def step(self, *args: Any) -> Any:
        return self._or_fail("step", *args)

    def prefill(self, *args: Any) -> Any:
        return self._or_fail("prefill", *args)

    def logsumexp(self, *args: Any) -> Any:
        return self._or_fail("logsumexp", *args)


@pytest.mark.parametrize("where", ["step", "prefill", "logsumexp"])
def test_a_failure_of_the_model_ends_requests_but_not_the_worker(
    model: LanguageModel, engine: Slow, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        with running(model, max_rows=2) as worker:
            good = job(model)
            worker.submit(good)
            texts = await read(good)
            original, engine.engine = engine.engine, Broken(engine.engine, where)
            jobs = [job(model, n=2), job(model)]
            for each in jobs:
                worker.submit(each)
            results = await asyncio.gather(*map(read, jobs), return_exceptions=True)
            assert isinstance(results[0], Stopped)
            assert str(results[0]) == "the model failed: out of order"
            wait_until(lambda: not worker.num_rows)
            engine.engine = original
            again = job(model)
            worker.submit(again)
            assert await read(again) == texts

    in_loop(main)
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "out of order" in caplog.text
    assert record.exc_info


def test_the_end_of_the_worker_ends_its_requests(model: LanguageModel, engine: Slow) -> None:
    async def main() -> None:
        engine.seconds = 0.05
        with running(model, max_rows=1) as worker:
            jobs = [job(model), job(model)]
            for each in jobs:
                worker.submit(each)
            wait_until(lambda: worker.num_rows)
            worker.stop()
            for each in jobs:
                with pytest.raises(Stopped, match="the server is shutting down"):
                    await read(each)
            with pytest.raises(Stopped):
                worker.submit(job(model))

    in_loop(main)


def test_rows_that_do_not_fit_into_memory_are_refused(model: LanguageModel) -> None:
    with pytest.raises(ValueError, match="reduce max_rows"):
        Worker("model", model, max_rows=10**9, max_waiting=1)


def test_without_memory_for_a_new_batch_requests_end_with_an_error_until_there_is(
    model: LanguageModel, engine: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: Any) -> None:
        raise RuntimeError("out of memory")

    async def main() -> None:
        with running(model, max_rows=2) as worker:
            original, engine.engine = engine.engine, Broken(engine.engine, "step")
            with monkeypatch.context() as patch:
                patch.setattr(Worker, "_new_batch", no_memory)
                for reason in ("out of order", "out of memory", "out of memory"):
                    failing = job(model)
                    worker.submit(failing)
                    with pytest.raises(Stopped, match=f"the model failed: {reason}"):
                        await read(failing)
            engine.engine = original
            good = job(model)
            worker.submit(good)
            assert await read(good)

    in_loop(main)
