"""Checkpoints at the ends of epochs."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import Command
from helpers.runs import Crash, assert_same, crash_in, folder
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, TensorDataset

from lit_lm.data.datamodule import LMDataModule
from lit_lm.model.config import TransformerConfig
from lit_lm.runs import checkpoints_in, step_of
from lit_lm.training.checkpointing import CheckpointCallback
from lit_lm.training.module import LitLM


@pytest.fixture
def fit(fit_tiny: Command) -> Command:
    return partial(fit_tiny, "--trainer.limit_val_batches=0", "--checkpoint.keep_last=99", "--data.batch_size=6")


def ends_of_epochs(corpus: Path, cache: Path, number: int, every: int = 1) -> list[int]:
    data = LMDataModule(source=str(corpus), cache_dir=str(cache), context_length=32, vocab_size=300, batch_size=6)
    data.setup("fit")
    windows = len(data.windows("train"))
    assert windows % 6
    return [math.ceil(epoch * windows / 6) for epoch in range(every, number + 1, every)]


def steps(name: str = "run") -> list[int]:
    return sorted(step_of(path) for path in checkpoints_in(folder(name)))


@pytest.mark.parametrize("every", [1, 2])
def test_checkpoints_are_saved_at_the_ends_of_epochs(fit: Command, corpus: Path, cache: Path, every: int) -> None:
    fit("--trainer.max_epochs=4", f"--checkpoint.every_n_epochs={every}")
    assert steps() == ends_of_epochs(corpus, cache, 4, every)


def test_the_steps_do_not_depend_on_interruptions(fit: Command, corpus: Path, cache: Path) -> None:
    expected = ends_of_epochs(corpus, cache, 4)
    options = ["--trainer.max_epochs=4", "--checkpoint.every_n_epochs=1", "--ckpt_path=last"]
    fit(*options, "--name=whole")
    for step in (expected[0] + 1, expected[2]):
        with pytest.MonkeyPatch.context() as patch:
            crash_in(patch, "training_step", step)
            with pytest.raises(Crash):
                fit(*options, "--name=broken")
    fit(*options, "--name=broken")
    assert steps("broken") == steps("whole") == expected
    assert_same("whole", "broken")


def test_steps_and_epochs_exclude_each_other(fit: Command) -> None:
    message = fit(
        "--checkpoint.every_n_epochs=1", "--checkpoint.every_n_steps=250", "--trainer.max_steps=2", fails=True
    )
    assert "every_n_steps is 250 and every_n_epochs is 1; set only one of them" in message
    assert "every_n_epochs is 0; it must be at least 1" in fit(
        "--checkpoint.every_n_epochs=0", "--trainer.max_steps=2", fails=True
    )


@pytest.mark.parametrize("options", [["--data.window_order=random"], ["--data.streaming=true"]], ids=str)
def test_data_without_epochs_is_refused(fit: Command, options: list[str]) -> None:
    message = fit("--checkpoint.every_n_epochs=1", "--trainer.max_steps=2", *options, fails=True)
    assert "the data has no epochs: use checkpoint.every_n_steps" in message


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec", "ignore:.*resumable")
@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval", "ignore:.*have no .val_dataloader")
def test_the_epochs_of_a_plain_loader_are_those_of_the_trainer(tmp_path: Path) -> None:
    ids = torch.randint(50, (20, 9), generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(ids[:, :-1], ids[:, 1:]), batch_size=4)
    net = TransformerConfig(vocab_size=50, context_length=8, d_model=16, num_layers=1, num_heads=2)
    trainer = Trainer(
        accelerator="cpu", logger=False, default_root_dir=tmp_path, max_epochs=3, enable_progress_bar=False,
        enable_model_summary=False, accumulate_grad_batches=2,
        callbacks=[CheckpointCallback(every_n_epochs=1, keep_last=99)],
    )  # fmt: skip
    trainer.fit(LitLM(net), loader)
    assert sorted(step_of(path) for path in checkpoints_in(tmp_path / "checkpoints")) == [3, 6, 9]
