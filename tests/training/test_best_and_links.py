"""The links best.ckpt and last.ckpt: when the validation data changes, and where there are no links."""

from pathlib import Path

import pytest
import torch
from conftest import TINY, Command
from helpers.runs import folder

from lit_lm.checkpoint import read_checkpoint


@pytest.fixture
def fit(corpus: Path, cache: Path, lit_lm: Command) -> Command:
    """Start or resume a run with validation every 2 steps and a checkpoint at every step."""
    options = [*TINY, f"--data.source={corpus}", f"--data.cache_dir={cache}", "--trainer.val_check_interval=2",
               "--checkpoint.every_n_steps=1", "--checkpoint.keep_last=1", "--ckpt_path=last"]  # fmt: skip

    def command(steps: int, *more: str) -> str:
        return lit_lm("fit", *options, f"--trainer.max_steps={steps}", *more)

    return command


def best() -> tuple[float, int]:
    state = torch.load(folder("run") / "last.ckpt", weights_only=True)["callbacks"]["CheckpointCallback"]
    return state["best_loss"], state["best_step"]


def test_the_best_loss_on_other_validation_data_is_dropped(fit: Command, tmp_path: Path) -> None:
    (tmp_path / "zeros.txt").write_text("0123456789 " * 300, encoding="utf-8")  # bytes that the model has rarely seen
    other = ["--data.val_source=zeros.txt", "--allow_changes=true"]
    fit(4)
    before, step = best()
    assert step == 4
    assert "dropped" not in fit(5, "--trainer.val_check_interval=50", "--model.max_skipped_steps=9")
    printed = fit(7, *other, "--model.optimizer.lr=0", "--model.optimizer.adamw_lr=0")
    assert printed.count("the validation data has changed: the best loss so far is dropped\n") == 1
    after, step = best()
    assert after > before  # which a loss of the other data would not have replaced
    assert step == read_checkpoint(folder("run") / "best.ckpt").step == 6
    assert "dropped" not in fit(8, *other)


def test_best_stays_until_the_new_data_has_been_validated(fit: Command, tmp_path: Path) -> None:
    (tmp_path / "zeros.txt").write_text("0123456789 " * 300, encoding="utf-8")
    fit(4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lit_lm.training.module.LitLM.on_validation_epoch_end", lambda self: None)  # no val/loss
        fit(7, "--data.val_source=zeros.txt", "--allow_changes=true")
    assert read_checkpoint(folder("run") / "best.ckpt").step == 4
    assert best() == (float("inf"), 0)


def test_where_there_are_no_links_copies_take_their_place(
    fit: Command, lit_lm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, *_: object) -> None:
        raise PermissionError(1, "Operation not permitted", str(self))

    monkeypatch.setattr(Path, "symlink_to", refused)
    assert "done: 4 steps" in fit(4)
    assert "done: 5 steps" in fit(5)
    for name, step in (("last", 5), ("best", 5)):
        assert not (folder("run") / f"{name}.ckpt").is_symlink()
        assert read_checkpoint(folder("run") / f"{name}.ckpt").step == step
    assert "val/loss" in lit_lm("validate", "--ckpt_path=best", "--name=run")
