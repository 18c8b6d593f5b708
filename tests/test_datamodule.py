"""From a source to batches, with a Trainer around it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch import LightningModule, Trainer

from lit_lm.data.datamodule import LMDataModule
from lit_lm.text.tokenizer import Tokenizer
from lit_lm.text.training import Kind


class Recorder(LightningModule):
    """Learns nothing, and keeps what it is given."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> None: ...


def prepared(data: LMDataModule, **trainer: Any) -> tuple[LMDataModule, Trainer]:
    options = {"max_steps": 3, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    trainer_ = Trainer(**(options | {"enable_progress_bar": False, "enable_model_summary": False} | trainer))
    data.trainer = trainer_
    data.prepare_data()
    data.setup("fit")
    return data, trainer_


@pytest.fixture
def options(corpus: Path, tmp_path: Path) -> dict[str, Any]:
    return {"source": str(corpus), "cache_dir": str(tmp_path), "context_length": 16, "vocab_size": 300, "batch_size": 4}


def test_stores_hold_the_text_of_all_documents(options: dict[str, Any], corpus: Path) -> None:
    data, _ = prepared(LMDataModule(**options, val_fraction=0.1))
    assert data.tokenizer is not None
    documents = corpus.read_text(encoding="utf-8").split("<|endoftext|>")
    texts = {
        split: data.tokenizer.decode(store.read(0, len(store)).tolist()).split("<|endoftext|>")[:-1]
        for split, store in data.stores.items()
    }
    assert len(texts["validation"]) == 6
    assert sorted(texts["train"] + texts["validation"]) == sorted(documents)
    meta = data.stores["validation"].meta
    assert meta.bytes == sum(len(text.encode()) for text in texts["validation"])
    assert data.bytes_per_token == meta.bytes / meta.tokens


@pytest.mark.parametrize("kind", ["unigram", "char"])
def test_the_kind_of_tokenizer_is_chosen(options: dict[str, Any], corpus: Path, kind: Kind) -> None:
    prepared(LMDataModule(**options))  # of another kind, in the same cache
    data, _ = prepared(LMDataModule(**options, tokenizer_type=kind))
    assert data.tokenizer is not None
    assert data.tokenizer.kind == kind
    assert data.tokenizer.vocab_size <= 300
    store = data.stores["validation"]
    texts = data.tokenizer.decode(store.read(0, len(store)).tolist()).split("<|endoftext|>")[:-1]
    assert set(texts) <= set(corpus.read_text(encoding="utf-8").split("<|endoftext|>"))
    assert store.meta.bytes == sum(len(text.encode()) for text in texts)


def test_a_second_time_nothing_is_written(options: dict[str, Any], tmp_path: Path) -> None:
    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    prepared(LMDataModule(**options))
    before = files()
    prepared(LMDataModule(**options))
    assert files() == before


def test_another_file_or_vocabulary_makes_another_store(options: dict[str, Any], tmp_path: Path) -> None:
    def num_stores() -> int:
        return sum(path.is_dir() for path in (tmp_path / "stores").iterdir())

    prepared(LMDataModule(**options))
    assert num_stores() == 2
    prepared(LMDataModule(**options | {"vocab_size": 280}))
    assert num_stores() == 4
    (tmp_path / "other.txt").write_text("Another text. " * 50)
    prepared(LMDataModule(**options | {"source": str(tmp_path / "other.txt")}))
    assert num_stores() == 6


@pytest.mark.parametrize(("micro_batch_size", "accumulation"), [(None, 1), (4, 1), (2, 2), (1, 4)])
def test_accumulation_follows_from_the_batch_sizes(
    options: dict[str, Any], micro_batch_size: int | None, accumulation: int
) -> None:
    data, trainer = prepared(LMDataModule(**options, micro_batch_size=micro_batch_size), val_check_interval=2)
    assert data.accumulation == trainer.accumulate_grad_batches == accumulation
    assert trainer.val_check_interval == 2 * accumulation
    assert len(data.train_dataloader()) == 3 * accumulation
    assert data.tokens_per_step == 4 * 16


def test_a_number_of_epochs_becomes_a_number_of_steps(options: dict[str, Any]) -> None:
    data, trainer = prepared(LMDataModule(**options), max_steps=-1, max_epochs=2)
    num_windows = (len(data.stores["train"]) - 17) // 16 + 1
    assert trainer.max_steps == -(-2 * num_windows // 4)


def test_what_does_not_divide_is_refused(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "world_size", 3)
    with pytest.raises(ValueError, match="batch_size 4 does not divide over 3 devices"):
        prepared(LMDataModule(**options))


def test_accumulation_given_twice_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="leave it out: it follows from"):
        prepared(LMDataModule(**options), accumulate_grad_batches=3)


def test_token_ids_need_their_tokenizer(options: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.train([corpus.read_text(encoding="utf-8")], 300)
    text = corpus.read_text(encoding="utf-8").split("<|endoftext|>")[0]
    ids = [*tokenizer.encode(text), tokenizer.end_id] * 20
    np.array(ids, dtype=np.uint16).tofile(tmp_path / "ids.bin")
    options |= {"source": str(tmp_path / "ids.bin"), "val_fraction": 0.5}
    with pytest.raises(ValueError, match=r"give the tokenizer they belong to by --data\.tokenizer"):
        prepared(LMDataModule(**options))
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    data, _ = prepared(LMDataModule(**options, tokenizer=str(tmp_path / "tokenizer.json")))
    assert data.stores["train"].read(0, len(ids) // 2).tolist() == ids[: len(ids) // 2]
    assert data.stores["train"].meta.bytes == len(text.encode()) * 10
    assert data.stores["train"].meta.documents == 10


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"(?s)batch_size is 0.*num_workers is -1.*val_fraction is 1"):
        LMDataModule(batch_size=0, num_workers=-1, val_fraction=1.0)
