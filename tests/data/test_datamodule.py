"""LMDataModule, from a source to batches, with a Trainer."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.runs import prepared
from lightning.pytorch import Trainer

from lit_lm.data import corpus as corpus_module
from lit_lm.data import token_store
from lit_lm.data.datamodule import LMDataModule
from lit_lm.tokenizer.tokenizer import Tokenizer
from lit_lm.tokenizer.train import TokenizerType


@pytest.fixture
def options(corpus: Path, tmp_path: Path) -> dict[str, Any]:
    return {"source": str(corpus), "cache_dir": str(tmp_path), "context_length": 16, "vocab_size": 300, "batch_size": 4}


def test_stores_hold_the_text_of_all_documents(options: dict[str, Any], corpus: Path) -> None:
    data, _ = prepared(LMDataModule(**options, val_fraction=0.1))
    assert data.tokenizer is not None
    documents = corpus.read_text(encoding="utf-8").split("<|endoftext|>")
    texts = {
        split: data.tokenizer.decode(store.read(0, len(store)).tolist()).split("<|endoftext|>")[:-1]
        for split, stores in data.stores.items()
        for store in stores.values()
    }
    assert len(texts["validation"]) == 6
    assert sorted(texts["train"] + texts["validation"]) == sorted(documents)
    meta = data.stores["validation"]["corpus"].meta
    assert meta.bytes == sum(len(text.encode()) for text in texts["validation"])


@pytest.mark.parametrize("tokenizer_type", ["unigram", "char"])
def test_the_tokenizer_type_can_be_chosen(options: dict[str, Any], corpus: Path, tokenizer_type: TokenizerType) -> None:
    prepared(LMDataModule(**options))  # another type in the same cache
    data, _ = prepared(LMDataModule(**options, tokenizer_type=tokenizer_type))
    assert data.tokenizer is not None
    assert data.tokenizer.type == tokenizer_type
    assert data.tokenizer.vocab_size <= 300
    store = data.stores["validation"]["corpus"]
    texts = data.tokenizer.decode(store.read(0, len(store)).tolist()).split("<|endoftext|>")[:-1]
    assert set(texts) <= set(corpus.read_text(encoding="utf-8").split("<|endoftext|>"))
    assert store.meta.bytes == sum(len(text.encode()) for text in texts)


def test_preparing_again_writes_no_files(options: dict[str, Any], tmp_path: Path) -> None:
    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    prepared(LMDataModule(**options))
    before = files()
    prepared(LMDataModule(**options))
    assert files() == before


def test_another_file_or_vocab_size_creates_another_store(options: dict[str, Any], tmp_path: Path) -> None:
    def num_stores() -> int:
        return sum(path.is_dir() for path in (tmp_path / "stores").iterdir())

    prepared(LMDataModule(**options))
    assert num_stores() == 2
    prepared(LMDataModule(**options | {"vocab_size": 280}))
    assert num_stores() == 4
    (tmp_path / "other.txt").write_text("Another text. " * 50)
    prepared(LMDataModule(**options | {"source": str(tmp_path / "other.txt")}))
    assert num_stores() == 6


@pytest.mark.parametrize("streaming", [False, True])
def test_another_text_of_the_same_size_and_time_is_read(
    options: dict[str, Any], tmp_path: Path, streaming: bool
) -> None:
    path = tmp_path / "same.txt"
    read, tokenizer, digests = [], None, {}
    for word in ("One", "Two"):
        path.write_text(f"{word} is here. " * 200)
        os.utime(path, ns=(0, 10**15))
        data, _ = prepared(LMDataModule(**options | {"source": str(path), "streaming": streaming}))
        assert data.tokenizer is not None
        store = data.stores["validation"]["same"]
        read.append(data.tokenizer.decode(store.read(0, len(store)).tolist()))
        tokenizer, digests = tokenizer or data.tokenizer, digests or data.state_dict()["digests"]
    assert ["One" in text for text in read] == [True, False]
    again = LMDataModule(**options | {"source": str(path), "streaming": streaming})
    again.tokenizer = tokenizer  # as when a run is resumed
    again.expected_digests = {"streamed": digests["streamed"]} if streaming else digests
    with pytest.raises(ValueError, match="data has changed since the checkpoint was written; restore it, or pass"):
        prepared(again)


def test_held_out_data_of_less_than_a_window_is_refused_when_streaming(options: dict[str, Any], tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(3):
        (texts / f"{number}.txt").write_text("a b c d e f g h i j k l m n o p q r s t u v w x y z " * 2)
    options |= {"source": str(texts), "streaming": True}
    with pytest.raises(
        ValueError,
        match=r"the validation data of texts has \d tokens, fewer than one window of 17; use more validation",
    ):
        prepared(LMDataModule(**options))
    for number in range(3, 60):
        (texts / f"{number}.txt").write_text("a b c d e f g h i j k l m n o p q r s t u v w x y z " * 2)
    data, _ = prepared(LMDataModule(**options))
    assert data.stores["validation"]["texts"].meta.documents == 3


def test_ids_without_text_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["some text"], 280)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    np.save(tmp_path / "a.npy", np.full(500, tokenizer.end_id))
    options |= {"source": str(tmp_path / "a.npy"), "tokenizer": str(tmp_path / "tokenizer.json")}
    with pytest.raises(ValueError, match=r"a\.npy \(train\): the source has no text$"):
        prepared(LMDataModule(**options))


def test_a_prepared_cache_is_only_read(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(LMDataModule(**options))
    for module in (corpus_module, token_store):
        monkeypatch.setattr(module, "FileLock", lambda *_: pytest.fail("a lock file is written"))
        monkeypatch.setattr(module, "write_text", lambda *_: pytest.fail("a file is written"))
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: pytest.fail("a folder is made"))
    data, _ = prepared(LMDataModule(**options))
    assert data.stores["train"]["corpus"].meta.tokens > 0


@pytest.mark.parametrize(("micro_batch_size", "accumulation"), [(None, 1), (4, 1), (2, 2), (1, 4)])
def test_accumulation_follows_from_the_batch_sizes(
    options: dict[str, Any], micro_batch_size: int | None, accumulation: int
) -> None:
    data, trainer = prepared(LMDataModule(**options, micro_batch_size=micro_batch_size), val_check_interval=2)
    assert data.accumulation == trainer.accumulate_grad_batches == accumulation
    assert trainer.val_check_interval == 2 * accumulation
    assert len(data.train_dataloader()) == 3 * accumulation
    assert data.data_info.tokens_per_step == 4 * 16


def test_max_epochs_is_converted_to_max_steps(options: dict[str, Any]) -> None:
    data, trainer = prepared(LMDataModule(**options), max_steps=-1, max_epochs=2)
    num_windows = (len(data.stores["train"]["corpus"]) - 17) // 16 + 1
    assert trainer.max_steps == -(-2 * num_windows // 4)


def test_a_batch_size_that_is_not_divisible_is_refused(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "world_size", 3)
    with pytest.raises(ValueError, match="batch_size 4 is not divisible by 3 devices"):
        prepared(LMDataModule(**options))


def test_accumulate_grad_batches_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="leave it out: it follows from"):
        prepared(LMDataModule(**options), accumulate_grad_batches=3)


def test_token_ids_require_their_tokenizer(options: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.train([corpus.read_text(encoding="utf-8")], 300)
    text = corpus.read_text(encoding="utf-8").split("<|endoftext|>")[0]
    ids = [*tokenizer.encode(text), tokenizer.end_id] * 20
    np.array(ids, dtype=np.uint16).tofile(tmp_path / "ids.bin")
    options |= {"source": str(tmp_path / "ids.bin"), "val_fraction": 0.5}
    with pytest.raises(ValueError, match=r"ids\.bin contains token ids; pass their tokenizer with --data\.tokenizer$"):
        prepared(LMDataModule(**options))
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    data, _ = prepared(LMDataModule(**options, tokenizer=str(tmp_path / "tokenizer.json")))
    store = data.stores["train"]["ids"]
    assert store.read(0, len(ids) // 2).tolist() == ids[: len(ids) // 2]
    assert store.meta.bytes == len(text.encode()) * 10
    assert store.meta.documents == 10


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(ValueError, match=r"(?s)batch_size is 0.*num_workers is -1.*val_fraction is 1"):
        LMDataModule(batch_size=0, num_workers=-1, val_fraction=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": {}}, "source is empty"),
        ({"source": {"a": 1.0, "b": 0.0}}, r"the weight of b is 0\.0; it must be more than 0"),
        ({"source": {"a": 1.0, "b": -1.0}}, r"the weight of b is -1\.0"),
        ({"source": {"a": 1.0, "b": float("nan")}}, "the weight of b is nan"),
        ({"source": {"a": 1.0, "b": float("inf")}}, "the weight of b is inf"),
        ({"source": {"a": 10_000.0, "b": 0.5}}, r"the weight of b is 0\.5"),
        ({"window_order": "random", "stride": 4}, "stride is 4, but window_order random has no stride"),
    ],
)
def test_invalid_mixtures_and_window_orders_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LMDataModule(**options)


@pytest.fixture
def mixture(corpus: Path, tmp_path: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Two files with the same name in different folders, and one with another name."""
    for folder in "ab":
        (tmp_path / folder).mkdir()
        text = corpus.read_text(encoding="utf-8").replace("The", folder.upper())
        (tmp_path / folder / "mine.txt").write_text(text, encoding="utf-8")
    (tmp_path / "other.txt").write_text("Another text. " * 200)
    weights = {str(tmp_path / "a" / "mine.txt"): 2, str(tmp_path / "b" / "mine.txt"): 1, str(tmp_path / "other.txt"): 1}
    return options | {"source": weights}


def test_sources_have_short_labels_unless_these_are_ambiguous(mixture: dict[str, Any]) -> None:
    data, _ = prepared(LMDataModule(**mixture))
    one, other, _ = mixture["source"]
    for split in ("train", "validation"):
        assert list(data.stores[split]) == [one, other, "other"]  # type: ignore[index]


def test_batches_of_a_mixture_follow_the_weights(mixture: dict[str, Any]) -> None:
    data, _ = prepared(LMDataModule(**mixture), max_steps=20)
    assert data.tokenizer is not None
    first = [data.tokenizer.decode(row.tolist()) for inputs, _ in data.train_dataloader() for row in inputs]
    assert len(first) == 80
    own = [[text for text in first if mark in text] for mark in ("A ", "B ", "Another")]
    windows = data.windows("train")
    stores = [windows.locate(index)[0] for step in range(1, 21) for index in data.window_schedule.step(step)]
    assert [stores.count(number) for number in range(3)] == [40, 20, 20]
    assert len(own[0]) > len(own[1]) > 5
    assert all(data.windows("train").stores[n] is store for n, store in enumerate(data.stores["train"].values()))


def test_a_validation_source_replaces_those_of_all_sources(mixture: dict[str, Any], corpus: Path) -> None:
    data, _ = prepared(LMDataModule(**mixture, val_source=str(corpus)))
    assert list(data.stores["validation"]) == ["corpus"]
    assert len(data.val_dataloader()) == 1
    assert data.stores["validation"]["corpus"].meta.documents == 60


def test_random_windows_start_at_any_token(options: dict[str, Any]) -> None:
    data, _ = prepared(LMDataModule(**options, window_order="random"), max_steps=50)
    store, windows = data.stores["train"]["corpus"], data.windows("train")
    assert len(windows) == len(store) - 16
    inputs = np.concatenate([inputs.numpy() for inputs, _ in data.train_dataloader()])
    starts = [windows.locate(index)[1] for step in range(1, 51) for index in data.window_schedule.step(step)]
    assert inputs.tolist() == [store.read(start, start + 16).tolist() for start in starts]
    assert len({start % 16 for start in starts}) == 16


@pytest.mark.parametrize("split", ["train", "validation"])
def test_tokens_that_differ_from_the_checkpoint_are_refused(options: dict[str, Any], split: str) -> None:
    data, _ = prepared(LMDataModule(**options))
    digests = data.state_dict()["digests"]
    assert digests == {split: store["corpus"].meta.sha256 for split, store in data.stores.items()}
    again = LMDataModule(**options)
    again.expected_digests = digests
    prepared(again)
    again.expected_digests = digests | {split: "another"}
    with pytest.raises(ValueError, match=f"the {split} data has changed since the checkpoint was written"):
        prepared(again)


@pytest.mark.parametrize(
    ("sizes", "num_bytes", "most", "expected"),
    [
        ([3, 9, 2], 15, 9, [3, 9, 2]),  # all
        ([9, 9, 9], 6, 9, [2, 2, 2]),
        ([9, 1, 9], 6, 9, [2, 1, 2]),  # what is left is less than one text for each
        ([9, 1, 9], 8, 9, [3, 1, 3]),
        ([9, 9, 9, 9, 9], 6, 3, [2, 0, 2, 0, 2]),
        ([1, 9, 1, 9, 1], 9, 3, [1, 3, 1, 3, 1]),  # the others follow when the first are read
    ],
)
def test_the_tokenizer_of_a_large_text_is_trained_on_the_beginnings_of_its_shards(
    sizes: list[int], num_bytes: int, most: int, expected: list[int], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(corpus_module, "SAMPLED_SHARDS", most)
    shards = [partial(iter, [(str(number), True)] * size) for number, size in enumerate(sizes)]
    read = list(corpus_module._sampled(shards, num_bytes))
    assert [read.count(str(number)) for number in range(len(sizes))] == expected
    printed = capsys.readouterr().out
    assert printed == (
        "" if expected == sizes else f"the tokenizer is trained on {len(read)} bytes, spread over {len(sizes)} shards\n"
    )
