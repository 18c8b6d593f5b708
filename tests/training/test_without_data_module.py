"""LitLM as a plain LightningModule: any Trainer, DataLoader and callbacks, subclasses, threads."""

import math
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from lit_lm.checkpoint import read_checkpoint
from lit_lm.data.datamodule import LMDataModule
from lit_lm.files import sha256
from lit_lm.model.config import TransformerConfig
from lit_lm.optim import AdamW, WarmupCosine
from lit_lm.training.checkpointing import CheckpointCallback
from lit_lm.training.console import Console
from lit_lm.training.curves import LossCurves
from lit_lm.training.module import LitLM
from lit_lm.training.samples import Samples
from lit_lm.training.spikes import LossSpikes
from lit_lm.training.throughput import Throughput

NET = TransformerConfig(vocab_size=50, context_length=8, d_model=16, num_layers=1, num_heads=2)

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:.*LeafSpec",
    "ignore:.*smaller than the logging interval",
    "ignore:.*your dataloader is not resumable",
    "ignore:.*but have no .val_dataloader",
    "ignore:.*callbacks used to create the checkpoint",
)


def loader(num_windows: int = 24) -> DataLoader[tuple[Tensor, ...]]:
    ids = torch.randint(50, (num_windows, 9), generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(ids[:, :-1], ids[:, 1:]), batch_size=4)


def trainer(tmp_path: Path, **options: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    defaults = {"accelerator": "cpu", "logger": False, "default_root_dir": tmp_path, "max_steps": 5}
    return Trainer(**defaults | quiet | options)


def perplexity_of(module: LitLM, data: DataLoader[tuple[Tensor, ...]]) -> float:
    with torch.no_grad():
        inputs, targets = (torch.cat(part) for part in zip(*data, strict=True))
        return math.exp(cross_entropy(module(inputs).flatten(0, 1), targets.flatten()))


def test_a_plain_loader_trains_validates_and_tests(tmp_path: Path) -> None:
    module, data = LitLM(NET), loader()
    run = trainer(tmp_path)
    run.fit(module, data, data)
    assert module.global_step == 5
    assert module.run.tokens_per_step == 4 * 8
    for stage, evaluate in (("val", run.validate), ("test", run.test)):
        (results,) = evaluate(module, data, verbose=False)
        assert results[f"{stage}/perplexity"] == pytest.approx(perplexity_of(module, data), rel=1e-5)
        assert results[f"{stage}/loss"] == pytest.approx(math.log(results[f"{stage}/perplexity"]), rel=1e-5)
        assert float(run.callback_metrics[f"{stage}/loss"]) == results[f"{stage}/loss"]


def test_predict_returns_the_logits_of_a_batch_or_of_its_inputs(tmp_path: Path) -> None:
    module, data = LitLM(NET), loader()
    for batches in (data, DataLoader(data.dataset.tensors[0], batch_size=4)):  # type: ignore[attr-defined]
        logits = trainer(tmp_path).predict(module, batches)
        with torch.no_grad():
            assert_close(torch.cat(logits), module(data.dataset.tensors[0]))  # type: ignore[arg-type, attr-defined]


@pytest.mark.parametrize(
    ("context_length", "message"),
    [
        (4, "windows of 4 tokens, but the model a context_length of 8"),
        (8, "tokenizer has 257 tokens, but the model a vocab_size of 50"),
    ],
)
def test_data_that_does_not_fit_the_model_is_refused(
    context_length: int, message: str, tmp_path: Path, corpus: Path, cache: Path
) -> None:
    data = LMDataModule(source=str(corpus), cache_dir=str(cache), context_length=context_length, vocab_size=257)
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).fit(LitLM(NET), datamodule=data)


def test_max_epochs_counts_epochs_of_a_plain_loader(tmp_path: Path) -> None:
    module = LitLM(NET, optimizer=AdamW, schedule=partial(WarmupCosine, warmup_steps=2))
    run = trainer(tmp_path, max_steps=-1, max_epochs=3)
    run.fit(module, loader(), loader())
    assert module.global_step == 3 * 6
    assert run.current_epoch == 3
    assert run.lr_scheduler_configs[0].scheduler.max_steps == 18


def test_tokens_per_step_include_accumulation(tmp_path: Path) -> None:
    module = LitLM(NET)
    trainer(tmp_path, accumulate_grad_batches=3, max_steps=2).fit(module, loader())
    assert module.run.tokens_per_step == 3 * 4 * 8


def all_callbacks() -> list[Any]:
    return [Console(every_n_steps=1), LossSpikes(), Samples(), LossCurves(), Throughput(), CheckpointCallback(2)]


@pytest.mark.parametrize("number", [None, *range(6)])
def test_each_callback_works_alone_and_all_together(
    number: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Regression test: a missing callback used to end the epoch, and the run started over."""
    callbacks = all_callbacks() if number is None else [all_callbacks()[number]]
    shows = any(isinstance(callback, Console) for callback in callbacks)
    module = LitLM(NET)
    run = trainer(tmp_path, callbacks=callbacks, enable_progress_bar=shows, enable_checkpointing=True, max_steps=6)
    run.fit(module, loader(), loader())
    assert module.global_step == 6
    printed = capsys.readouterr().out
    assert ("done: 6 steps, 192 tokens" in printed) == shows
    assert ("step 6/6: loss " in printed) == shows
    assert "nowhere" not in printed
    for name, path in module.run.files.items():
        assert path.is_file(), name
        assert str(path) in printed or not shows
    assert ("loss curves" in module.run.files) == any(isinstance(callback, LossCurves) for callback in callbacks)


def test_lightnings_own_callbacks_and_logger_find_the_metrics(tmp_path: Path) -> None:
    module = LitLM(NET)
    callbacks = [
        ModelCheckpoint(tmp_path / "own", monitor="val/loss", filename="best"),
        EarlyStopping("train/loss", patience=50, check_on_train_epoch_end=True),
    ]
    run = trainer(
        tmp_path, callbacks=callbacks, logger=CSVLogger(tmp_path), enable_checkpointing=True, max_steps=12,
        log_every_n_steps=2,
    )  # fmt: skip
    run.fit(module, loader(), loader())
    rows = (Path(run.log_dir or "") / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert {"val/loss", "train/loss", "train/gradient_norm", "step"} <= set(rows[0].split(","))
    train, validations = {1, 2, 4, 6, 8, 10, 12}, {6, 12}
    assert len(rows) == 1 + len(train) + len(validations)


def test_a_checkpoint_of_any_trainer_has_a_digest_and_can_be_read(tmp_path: Path) -> None:
    module = LitLM(NET, optimizer=partial(torch.optim.AdamW, lr=1e-2), schedule=WarmupCosine)
    run = trainer(tmp_path)
    run.fit(module, loader())
    run.save_checkpoint(tmp_path / "x.ckpt")
    digest = (tmp_path / "x.ckpt.sha256").read_text(encoding="ascii").split()[0]
    assert digest == sha256(tmp_path / "x.ckpt")
    checkpoint = read_checkpoint(tmp_path / "x.ckpt")
    assert checkpoint.tokenizer is None
    assert checkpoint.model["optimizer"] == {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-2}}
    assert checkpoint.model["schedule"] == {"class_path": "lit_lm.optim.WarmupCosine", "init_args": {}}
    ids = torch.randint(50, (2, 8))
    loaded = LitLM.load_from_checkpoint(tmp_path / "x.ckpt").eval()
    module.eval()
    with torch.no_grad():
        assert_close(loaded(ids), module(ids), atol=0, rtol=0)
        assert_close(checkpoint.transformer()(ids), module(ids), atol=0, rtol=0)
    assert loaded.net.config == NET


def test_a_failed_write_leaves_no_checkpoint_and_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, run = LitLM(NET), trainer(tmp_path)
    run.fit(module, loader())

    def full(content: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left on device"):
        run.save_checkpoint(tmp_path / "x.ckpt")
    assert not list(tmp_path.glob("*x.ckpt*"))


def test_a_plain_run_resumes_weights_optimizer_and_learning_rate(tmp_path: Path) -> None:
    """Lightning decides which batch comes next; after the end of the loader it is the first one."""

    def fitted(max_steps: int, path: Path | None = None) -> LitLM:
        module = LitLM(NET, optimizer=AdamW, schedule=partial(torch.optim.lr_scheduler.StepLR, step_size=4))
        run = trainer(tmp_path, max_steps=max_steps, max_epochs=-1)
        run.fit(module, loader(), ckpt_path=path)
        run.save_checkpoint(tmp_path / f"{max_steps}.ckpt")
        return module

    fitted(6)  # at the end of the loader
    whole, resumed = fitted(7), fitted(7, tmp_path / "6.ckpt")
    assert_close(list(resumed.parameters()), list(whole.parameters()), atol=0, rtol=0)


class Weighted(LitLM):
    """A subclass with its own argument and loss."""

    def __init__(self, net: TransformerConfig = NET, weight: float = 1.0, **options: Any) -> None:
        super().__init__(net, **options)
        self.weight = weight

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.weight * super().training_step(batch, batch_idx)


def test_a_subclass_is_loaded_with_its_own_arguments(tmp_path: Path) -> None:
    module, run = Weighted(weight=0.5), trainer(tmp_path)
    run.fit(module, loader())
    run.save_checkpoint(tmp_path / "x.ckpt")
    loaded = Weighted.load_from_checkpoint(tmp_path / "x.ckpt")
    assert loaded.weight == 0.5
    assert_close(list(loaded.parameters()), list(module.parameters()), atol=0, rtol=0)
    assert Weighted.load_from_checkpoint(tmp_path / "x.ckpt", weight=2.0).weight == 2.0


def test_building_a_model_keeps_the_random_state() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    LitLM(NET)
    assert torch.equal(torch.rand(3), expected)


def test_a_run_works_outside_the_main_thread(tmp_path: Path) -> None:
    module = LitLM(NET)
    run = trainer(tmp_path, callbacks=[CheckpointCallback(2)], enable_checkpointing=True)
    thread = threading.Thread(target=run.fit, args=(module, loader()))
    thread.start()
    thread.join()
    assert module.global_step == 5
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt").step == 5


@pytest.mark.filterwarnings("ignore:.*was not set, defaulting to", "ignore:.*isinstance.treespec")
def test_lightnings_tuner_finds_a_learning_rate_and_restores_the_model(tmp_path: Path) -> None:
    module = LitLM(NET, optimizer=AdamW)
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    found = Tuner(trainer(tmp_path)).lr_find(
        module, loader(400), min_lr=1e-6, max_lr=1, num_training=40, update_attr=False
    )
    assert found is not None
    assert found.results["lr"][1:] == pytest.approx(torch.logspace(-6, 0, 41)[2:].tolist(), rel=0.05)
    assert all(torch.equal(weight, before[name]) for name, weight in module.state_dict().items())


def test_a_document_mask_needs_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="document_mask needs a data module whose data_info has a tokenizer"):
        trainer(tmp_path).fit(LitLM(NET, document_mask=True), loader())


class Endless:
    """An iterable without a length."""

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from loader()


def test_an_iterable_without_a_length_trains(tmp_path: Path) -> None:
    module = LitLM(NET)
    trainer(tmp_path, max_steps=9).fit(module, Endless())
    assert module.global_step == 9
