"""Streaming gives the windows of a token store, loses nothing, and resumes anywhere, with any devices and workers."""

import gzip
import json
import multiprocessing
import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zstandard
from conftest import TINY, Command
from helpers.runs import Crash, assert_same, crash_in, folder, prepared
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lit_lm.data.datamodule import LMDataModule
from lit_lm.data.loader import WindowDataset
from lit_lm.data.readers import BadDocuments, TextPart
from lit_lm.data.sources import TextSource, open_sources
from lit_lm.data.streaming import StreamingLoader, StreamingText, StreamPosition, fitting_num_streams, sharing_problem
from lit_lm.data.token_store import StoreWriter
from lit_lm.data.tokenize import tokenize
from lit_lm.data.windows import Windows
from lit_lm.tokenizer.tokenizer import Tokenizer
from lit_lm.tokenizer.train import END_OF_TEXT
from lit_lm.training.module import LitLM

TEXTS = [
    f"{animal} number {n} ran {'far ' * (n % 5)}away." for n, animal in enumerate(["cat", "owl", "hen", "fox"] * 7)
]
TOKENIZER = Tokenizer.train(TEXTS, 280)
CONTEXT = 8


def parts(texts: list[str], bad: BadDocuments) -> Iterator[TextPart]:
    return ((text, True) for text in texts)


def texts_of(source: Any) -> list[str]:
    return list(source.texts(BadDocuments()))


def streaming_text(shards: list[list[str]], **options: Any) -> StreamingText:
    source = TextSource([partial(parts, shard) for shard in shards], "")
    defaults = {"context_length": CONTEXT, "batch_size": 4, "num_streams": 1, "shuffle_buffer": 5, "seed": 3}
    return StreamingText(source, TOKENIZER, **defaults | options)


def cut(num_shards: int) -> list[list[str]]:
    size = len(TEXTS) // num_shards
    return [TEXTS[i * size : (i + 1) * size] for i in range(num_shards)]


def first(
    text: StreamingText, stream: int, number: int, position: StreamPosition = StreamPosition()
) -> list[tuple[list[int], StreamPosition]]:
    return [(ids.tolist(), after) for ids, after in islice(text.windows(stream, position), number)]


def documents(text: StreamingText, stream: int, number: int) -> list[str]:
    """The first documents of a stream, joined from its windows."""
    ids = [i for window, _ in first(text, stream, 40 * number) for i in window[:-1]]
    return TOKENIZER.decode(ids).split(END_OF_TEXT)[:number]


def documents_of_epoch(text: StreamingText, stream: int, epoch: int) -> list[str]:
    """The documents of an epoch of a stream, joined from its windows of one input each."""
    ids, position = list[int](), StreamPosition(epoch)
    windows = text.windows(stream, position)
    while position.epoch == epoch:
        window, position = next(windows)
        ids.append(int(window[0]))
    return TOKENIZER.decode(ids).removesuffix(END_OF_TEXT).split(END_OF_TEXT)


@given(shards=st.lists(st.lists(st.text(max_size=30), max_size=4), min_size=1, max_size=4).filter(any))
def test_without_shuffling_windows_equal_those_of_a_token_store(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[str]]
) -> None:
    path = tmp_path_factory.mktemp("store") / "store"
    writer = StoreWriter(path, "", TOKENIZER, 1)
    writer.write(0, tokenize(((text, True) for shard in shards for text in shard), TOKENIZER), lambda: 0)
    windows = Windows([writer.finish()], CONTEXT, CONTEXT, whole=True)
    inputs, targets = WindowDataset(windows).__getitems__(list(range(len(windows))))
    streamed = first(streaming_text(shards, shuffle_buffer=0), 0, len(windows))
    assert [ids[:-1] for ids, _ in streamed] == inputs.tolist()
    assert [ids[1:] for ids, _ in streamed] == targets.tolist()


@pytest.mark.parametrize("shuffle_buffer", [0, 1, 5, 100])
def test_a_stream_resumed_at_any_position_equals_an_uninterrupted_one(shuffle_buffer: int) -> None:
    text = streaming_text(cut(4), num_streams=2, shuffle_buffer=shuffle_buffer)
    uninterrupted = first(text, 1, 120)
    assert {position.epoch for _, position in uninterrupted} >= {0, 1, 2}
    for number, (_, position) in enumerate(uninterrupted[:100], start=1):
        assert first(text, 1, 20, StreamPosition(*list(position))) == uninterrupted[number : number + 20]


@pytest.mark.parametrize(("num_shards", "num_streams"), [(1, 1), (4, 1), (4, 2), (4, 4), (7, 1)])
def test_every_document_is_read_once_per_epoch(num_shards: int, num_streams: int) -> None:
    text = streaming_text(cut(num_shards), num_streams=num_streams)
    share = len(TEXTS) // num_streams
    read = [documents(text, stream, 3 * share) for stream in range(num_streams)]
    epochs = [[d for stream in read for d in stream[e * share : (e + 1) * share]] for e in range(3)]
    assert all(sorted(epoch) == sorted(TEXTS) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [TEXTS, *epochs]}) == 4


def test_streams_with_unequal_shards_read_every_document() -> None:
    shards = [TEXTS[:1], [], TEXTS[1:18], TEXTS[18:]]
    text = streaming_text(shards, num_streams=2, context_length=1)
    for epoch in range(3):
        read = [document for stream in range(2) for document in documents_of_epoch(text, stream, epoch)]
        assert sorted(read) == sorted(TEXTS)


def test_an_empty_shard_is_skipped_and_an_empty_source_is_refused() -> None:
    text = streaming_text([[], TEXTS], num_streams=2)
    assert sorted(documents(text, 0, 28)) == sorted(documents(text, 1, 28)) == sorted(TEXTS)
    with pytest.raises(ValueError, match="the source has no text"):
        first(streaming_text([[], []]), 0, 1)


@pytest.mark.parametrize(
    ("most", "num_shards", "batch_size", "shuffle_buffer", "expected"),
    [(8, 100, 32, 1000, 8), (8, 3, 32, 1000, 2), (8, 100, 12, 10, 6), (8, 100, 7, 1, 7), (8, 100, 32, 0, 1)],
)
def test_each_stream_has_a_shard_and_an_equal_share_of_the_batch(
    most: int, num_shards: int, batch_size: int, shuffle_buffer: int, expected: int
) -> None:
    assert expected == fitting_num_streams(
        most, num_shards=num_shards, batch_size=batch_size, shuffle_buffer=shuffle_buffer
    )


@pytest.mark.parametrize(
    ("streams", "devices", "most", "expected"),
    [
        (8, 8, 8, None),
        (8, 20, 8, "up to 3 of them read and tokenize the same text; start a run with --data.num_streams 20$"),
        (2, 4, 8, "4 devices share 2 streams, so up to 2 of them .*; split the source into more files$"),
    ],
)
def test_devices_that_read_the_same_text_are_reported(
    streams: int, devices: int, most: int, expected: str | None
) -> None:
    problem = sharing_problem(streams, devices, most)
    assert problem == expected if problem is None or expected is None else re.search(expected, problem)


def loader_of(
    text: StreamingText, positions: list[StreamPosition], *, world_size: int, rank: int, start: int, **options: int
) -> StreamingLoader:
    progress = SimpleNamespace(restarting=False)
    trainer: Any = SimpleNamespace(
        world_size=world_size, global_rank=rank, global_step=start, max_steps=9, fit_loop=progress, strategy=None
    )
    return StreamingLoader(text, positions, trainer, **{"micro_batch_size": 1, "num_workers": 0} | options)


def positions_after(devices: list[StreamingLoader], step: int) -> list[StreamPosition]:
    """The positions of the streams, which the devices exchange as processes would by torch.distributed."""
    parts: list[Any] = []
    everyone_has_sent = Barrier(len(devices), timeout=60)

    def all_gather_object(gathered: list[Any], own: Any) -> None:
        parts.append(own)
        everyone_has_sent.wait()
        gathered[:] = parts

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(len(devices)) as threads:
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        patch.setattr(torch.distributed, "all_gather_object", all_gather_object)
        first, *others = threads.map(lambda device: device.positions_after(step), devices)
    assert all(other == first for other in others)
    return first


def run(
    text: StreamingText, world_size: int, num_workers: int, start: int, stop: int, positions: list[StreamPosition]
) -> Any:
    """The global batches of the steps, and the positions of the streams after them, on `world_size` devices."""
    devices = [
        loader_of(text, positions, world_size=world_size, rank=rank, start=start,
                  num_workers=num_workers, micro_batch_size=4 // world_size)
        for rank in range(world_size)
    ]  # fmt: skip
    rows: list[list[list[int]]] = [[] for _ in range(start, stop)]
    for device in devices:
        for step, (inputs, _) in zip(range(start, stop), device, strict=False):
            rows[step - start] += inputs.tolist()
    return rows, positions_after(devices, stop)


@pytest.mark.parametrize("num_streams", [1, 2, 4])
def test_global_batches_do_not_depend_on_devices_and_workers(num_streams: int) -> None:
    text = streaming_text(cut(4), num_streams=num_streams)
    expected = run(text, 1, 0, 0, 8, text.beginning())
    for world_size, num_workers in [(2, 0), (4, 0), (1, 2)]:
        assert run(text, world_size, num_workers, 0, 8, text.beginning()) == expected


def test_a_run_resumes_with_different_devices_and_workers() -> None:
    text = streaming_text(cut(4), num_streams=2)
    expected, end = run(text, 1, 0, 0, 8, text.beginning())
    rows, positions = [], text.beginning()
    for world_size, num_workers, start, stop in [(1, 2, 0, 3), (2, 0, 3, 5), (4, 0, 5, 6), (1, 0, 6, 8)]:
        more, positions = run(text, world_size, num_workers, start, stop, positions)
        rows += more
    assert rows == expected
    assert positions == end


def test_the_state_belongs_to_the_current_step_and_not_to_prefetched_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    text = streaming_text(cut(4), num_streams=2)
    loader = loader_of(text, text.beginning(), world_size=1, rank=0, start=0, num_workers=2, micro_batch_size=2)
    ahead = iter(loader)
    for step in range(1, 5):
        for _ in range(4 if step == 1 else 2):  # one step is prefetched
            next(ahead)
        loader.trainer.global_step = step  # type: ignore[misc]
        assert loader.positions_after(step) == run(text, 1, 0, 0, step, text.beginning())[1]
    for step in range(3):  # forgotten
        with pytest.raises(KeyError):
            loader.positions_after(step)


def test_micro_batches_are_slices_of_the_batch() -> None:
    text = streaming_text(cut(4), num_streams=2)
    whole = next(iter(loader_of(text, text.beginning(), world_size=1, rank=0, start=0, micro_batch_size=4)))
    slices = list(islice(loader_of(text, text.beginning(), world_size=1, rank=0, start=0), 4))
    torch.testing.assert_close(torch.cat([inputs for inputs, _ in slices]), whole[0])
    torch.testing.assert_close(torch.cat([targets for _, targets in slices]), whole[1])
    torch.testing.assert_close(whole[0][:, 1:], whole[1][:, :-1])


def write(folder: Path, kind: str, texts: list[list[str]]) -> None:
    """Write the texts as one file per shard, with the suffix `kind`."""
    folder.mkdir(exist_ok=True)
    for number, shard in enumerate(texts):
        path = folder / f"train-{number}{kind}"
        if kind == ".parquet":
            pq.write_table(pa.table({"text": shard}), path)
            continue
        plain = END_OF_TEXT.join(shard) if ".txt" in kind else "\n".join(json.dumps({"text": text}) for text in shard)
        compress = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
        path.write_bytes(compress(plain.encode()))


KINDS = [".txt", ".txt.gz", ".txt.zst", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"]


@pytest.fixture
def options(tmp_path: Path, corpus: Path) -> dict[str, Any]:
    return {"val_source": str(corpus), "cache_dir": str(tmp_path / "cache"), "context_length": 16, "vocab_size": 300,
            "batch_size": 4, "streaming": True, "tokenizer": str(tmp_path / "tokenizer.json")}  # fmt: skip


@pytest.fixture(autouse=True)
def _tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(TOKENIZER.to_json(), encoding="utf-8")


def opened(options: dict[str, Any]) -> StreamingText:
    data, _ = prepared(LMDataModule(**options))
    assert data.streaming_text is not None
    return data.streaming_text


@pytest.mark.parametrize("kind", KINDS)
def test_shards_of_every_file_type_are_read(tmp_path: Path, options: dict[str, Any], kind: str) -> None:
    write(tmp_path / "shards", kind, cut(4))
    text = opened(options | {"source": f"{tmp_path}/shards/*", "shuffle_buffer": 0})
    assert documents(text, 0, len(TEXTS)) == TEXTS
    assert len(text.source.shards) == 4


def test_a_text_file_without_separators_is_one_document(tmp_path: Path, options: dict[str, Any]) -> None:
    write(tmp_path / "shards", ".txt", [[text] for text in TEXTS[:3]])
    assert documents(opened(options | {"source": f"{tmp_path}/shards/*", "shuffle_buffer": 0}), 0, 3) == TEXTS[:3]


@pytest.mark.parametrize("kind", [".jsonl.zst", ".parquet"])
def test_a_data_set_of_the_hub_is_read_with_and_without_workers(
    tmp_path: Path, options: dict[str, Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    write(tmp_path / "hub", kind, cut(4))
    source = {"source": f"hub:{tmp_path}/hub", "val_source": options["val_source"]}
    read = []
    for num_workers in (0, 2):
        data, _ = prepared(LMDataModule(**options | source, num_workers=num_workers), max_steps=9)
        read.append([inputs.tolist() for inputs, _ in data.train_dataloader()])
    assert data.streaming_text is not None
    assert data.streaming_text.num_streams == 4
    assert read[0] == read[1]
    assert len(read[0]) == 9
    streams = [documents(data.streaming_text, stream, 7) for stream in range(4)]
    assert sorted(text for stream in streams for text in stream) == sorted(TEXTS)


def test_validation_documents_are_held_out_from_the_first_shard(tmp_path: Path) -> None:
    write(tmp_path / "shards", ".jsonl", cut(2))
    sources = open_sources(
        f"{tmp_path}/shards/*", None, val_fraction=0.25, text_field="text", bin_dtype="uint16", streaming=True
    )
    train, validation = texts_of(sources["train"]), texts_of(sources["validation"])
    assert validation == TEXTS[3:14:4]
    assert sorted(train + validation) == sorted(TEXTS)


def test_the_tokenizer_is_trained_on_the_beginning_of_the_source(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "shards", ".jsonl", cut(4))
    monkeypatch.setattr("lit_lm.data.corpus.TOKENIZER_BYTES", len(TEXTS[0]) + 1)
    tokenizer = opened(options | {"source": f"{tmp_path}/shards/*", "tokenizer": None}).tokenizer
    assert tokenizer.to_json() == Tokenizer.train(TEXTS[:2], 300).to_json()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"stride": 8}, "streaming does not support window_order shuffled with stride 8; leave both out"),
     ({"window_order": "random"}, "streaming does not support window_order random with stride 1; leave both out"),
     ({"source": {"stories": 1.0, "stories-zh": 1.0}}, "source lists 2 sources, but streaming reads only one"),
     ({"shuffle_buffer": -1}, "shuffle_buffer is -1; it must be between 0 and 10,000,000"),
     ({"num_streams": 0}, "num_streams is 0; it must be at least 1")],
)  # fmt: skip
def test_options_that_streaming_does_not_support_are_refused(
    options: dict[str, Any], wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LMDataModule(**options | wrong)


def test_streaming_refuses_max_epochs_and_token_ids(tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "ids.bin").write_bytes(bytes(1000))
    with pytest.raises(ValueError, match=r"ids\.bin contains token ids, not text; leave out streaming"):
        prepared(LMDataModule(**options | {"source": str(tmp_path / "ids.bin")}))
    with pytest.raises(ValueError, match=r"trainer\.max_epochs is 2, but streaming has no epochs"):
        prepared(LMDataModule(**options), max_steps=-1, max_epochs=2)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_document_ends_the_run_with_a_hint_to_resume(
    tmp_path: Path, options: dict[str, Any], num_workers: int
) -> None:
    write(tmp_path / "shards", ".jsonl", cut(2))
    with open(tmp_path / "shards" / "train-1.jsonl", "a") as file:
        file.write("\n{broken")
    options |= {"source": f"{tmp_path}/shards/*", "num_workers": num_workers, "shuffle_buffer": 2}
    data, _ = prepared(LMDataModule(**options), max_steps=100)
    with pytest.raises(
        ValueError, match=r"^.*train-1\.jsonl, line 15: not JSON: .*\nFix this, then resume: .* --ckpt_path last\.$"
    ):
        list(data.train_dataloader())


def unreachable(bad: BadDocuments) -> Iterator[TextPart]:
    yield from parts(TEXTS, bad)
    raise ConnectionError("the network is gone")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_network_error_ends_the_run_with_a_hint_to_resume(num_workers: int) -> None:
    text = replace(streaming_text([TEXTS]), source=TextSource([unreachable], ""))
    loader = loader_of(text, text.beginning(), world_size=1, rank=0, start=0, num_workers=num_workers)
    loader.trainer.max_steps = 100  # type: ignore[misc]
    with pytest.raises(OSError, match=r"^the network is gone\nFix this, then resume: .* --ckpt_path last\.$"):
        list(loader)


@pytest.mark.parametrize("kind", [".jsonl.gz", ".jsonl.zst", ".txt.gz", ".txt.zst"])
def test_a_truncated_shard_is_reported(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "shards", kind, [TEXTS])
    path = tmp_path / "shards" / f"train-0{kind}"
    path.write_bytes(path.read_bytes()[:-9])
    options: dict[str, Any] = {"val_fraction": 0.1, "text_field": "text", "bin_dtype": "uint16", "streaming": True}
    source = open_sources(str(path), None, **options)["train"]
    assert isinstance(source, TextSource)
    with pytest.raises(OSError, match=rf"train-0{kind} cannot be read: "):
        texts_of(source)


@pytest.fixture
def fit(tmp_path: Path, cache: Path, corpus: Path, lit_lm: Command) -> Command:
    """Start or resume a run of 12 steps that streams three epochs, with a checkpoint every 3 steps."""
    write(tmp_path / "shards", ".jsonl.gz", cut(4))
    fit_options = [*TINY, f"--data.source={tmp_path}/shards/*", f"--data.val_source={corpus}", "--data.streaming=true",
                   f"--data.cache_dir={cache}", "--data.shuffle_buffer=5", "--trainer.max_steps=12",
                   "--trainer.val_check_interval=6", "--trainer.log_every_n_steps=1", "--checkpoint.every_n_steps=3",
                   "--ckpt_path=last"]  # fmt: skip
    return lambda name, *more, fails=False: lit_lm("fit", *fit_options, f"--name={name}", *more, fails=fails)


@pytest.mark.parametrize("more", [("--data.micro_batch_size=2",), ("--data.num_workers=2",)], ids=str)
def test_a_resumed_run_equals_an_uninterrupted_one(fit: Command, more: tuple[str, ...]) -> None:
    fit("whole")
    for step in (4, 11):
        with pytest.MonkeyPatch.context() as patch:
            crash_in(patch, "training_step", step)
            with pytest.raises(Crash):
                fit("resumed", *more)
    fit("resumed", *more)
    if "--data.num_workers=2" in more:
        assert_same("whole", "resumed")
    state = torch.load(folder("resumed") / "last.ckpt", weights_only=True)["LMDataModule"]["streaming"]
    assert state["step"] == 12
    assert state == torch.load(folder("whole") / "last.ckpt", weights_only=True)["LMDataModule"]["streaming"]
    assert max(epoch for epoch, *_ in state["positions"]) >= 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda number: number.name)
@pytest.mark.parametrize("streaming", [True, False])
def test_the_step_is_finished_after_a_signal_to_all_processes(
    fit: Command, streaming: bool, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LitLM.training_step

    def signalled(self: LitLM, *args: Any) -> Tensor:
        if self.global_step == 4:
            for process in [*multiprocessing.active_children(), multiprocessing.current_process()]:
                os.kill(int(process.pid or 0), number)
        return original(self, *args)

    monkeypatch.setattr(LitLM, "training_step", signalled)
    with pytest.raises(SystemExit) as stop:
        fit("signalled", "--data.num_workers=2", f"--data.streaming={streaming}")
    assert stop.value.code == 128 + number
    assert torch.load(folder("signalled") / "step_00000005.ckpt", weights_only=True)["global_step"] == 5


def test_a_changed_source_is_refused_unless_allowed(fit: Command, lit_lm: Command, tmp_path: Path) -> None:
    fit("whole", "--trainer.max_steps=3")
    assert "val/loss" in lit_lm("validate", "--ckpt_path", folder("whole") / "last.ckpt")
    (tmp_path / "shards" / "train-3.jsonl.gz").unlink()
    message = fit("whole", fails=True)
    assert "the train data has changed since the checkpoint was written" in message
    assert "the data differs from the checkpoint's: streaming starts from the beginning" in fit(
        "whole", "--allow_changes=true"
    )


def test_show_prints_the_windows_of_a_step_before_and_after_the_checkpoint(
    fit: Command, lit_lm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[list[int]]] = []
    original = StreamingLoader.__iter__

    def recorded(self: StreamingLoader) -> Iterator[Any]:
        for batch in original(self):
            read.append(batch[0].tolist())
            yield batch

    monkeypatch.setattr(StreamingLoader, "__iter__", recorded)
    fit("whole")
    for path, step in [("step_00000009.ckpt", 11), ("last.ckpt", 11), ("last.ckpt", 13)]:
        printed = lit_lm("data", "show", "--ckpt_path", folder("whole") / path, "--step", step)
        headings = printed.split(f"--- step {step}, window ")[1:]
        assert len(headings) == 4
        assert all("from shard " in heading for heading in headings)
        if step <= 12:
            tokenizer = Tokenizer.from_json(torch.load(folder("whole") / path)["tokenizer"])
            for heading, row in zip(headings, read[step - 1], strict=True):
                text = heading.partition(" ---\n")[2].replace(f"\n{END_OF_TEXT}\n", END_OF_TEXT)
                assert text.replace("\n", "").startswith(tokenizer.decode(row).replace("\n", ""))
