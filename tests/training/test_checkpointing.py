"""A run that is interrupted and resumed equals an uninterrupted run."""

import json
import math
import os
import re
import shutil
import signal
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import TINY, Command
from helpers.runs import Crash, assert_same, crash_in, curve, folder, state
from lightning.pytorch import Trainer
from torch import Tensor
from torch._dynamo.utils import counters

from lit_lm.model.config import TransformerConfig
from lit_lm.runs import checkpoints_in
from lit_lm.training.module import LitLM
from lit_lm.training.resume import progress_after
from lit_lm.training.spikes import LossSpikes
from lit_lm.training.step_log import StepTaken

STEPS = 12


@pytest.fixture
def fit(corpus: Path, cache: Path, lit_lm: Command) -> Command:
    """Start or resume a run of 12 steps, with validation every 5 steps and a checkpoint every 3."""
    options = [*TINY, "--model.net.dropout=0.1", f"--data.source={corpus}", f"--data.cache_dir={cache}",
               f"--trainer.max_steps={STEPS}", "--trainer.val_check_interval=5", "--trainer.log_every_n_steps=1",
               "--checkpoint.every_n_steps=3", "--ckpt_path=last"]  # fmt: skip

    def command(name: str, *more: str, fails: bool = False) -> str:
        return lit_lm("fit", *options, f"--name={name}", *more, fails=fails)

    return command


@pytest.mark.parametrize("options", [(), ("--data.micro_batch_size=2",), ("--data.num_workers=2",)], ids=str)
def test_a_run_resumes_exactly_after_an_interruption_anywhere(fit: Command, options: tuple[str, ...]) -> None:
    fit("whole", *options)
    places = [("training_step", 0), ("training_step", 2), ("training_step", 3), ("validation_step", 5),
              ("training_step", 7), ("on_validation_epoch_end", 10), ("training_step", 11)]  # fmt: skip
    for hook, step in places[:: 3 if options else 1]:
        with pytest.MonkeyPatch.context() as patch:
            crash_in(patch, hook, step)
            with pytest.raises(Crash):
                fit("broken", *options)
    fit("broken", *options)
    last = max((Path("logs") / "broken").glob("version_*"))
    if last.name != "version_0":  # a run interrupted before its first checkpoint starts over
        (Path("logs") / "broken" / "version_0").rename("unfinished")
        last.rename(Path("logs") / "broken" / "version_0")
    assert_same("whole", "broken")


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_a_compiled_run_resumes_exactly_and_matches_an_eager_run(fit: Command) -> None:
    cache = counters["aot_autograd"]
    cache.clear()
    assert ", compiled |" in fit("whole", "--model.compile=true", "--model.net.dropout=0")
    with pytest.MonkeyPatch.context() as patch:
        crash_in(patch, "training_step", 7)
        with pytest.raises(Crash):
            fit("broken", "--model.compile=true", "--model.net.dropout=0")
    fit("broken", "--model.compile=true", "--model.net.dropout=0")
    assert_same("whole", "broken")
    assert cache["autograd_cache_hit"] or cache["autograd_cache_saved"]
    assert not cache["autograd_cache_bypass"]
    assert "compiled" not in fit("eager", "--model.net.dropout=0")
    torch.testing.assert_close(state("whole")["state_dict"], state("eager")["state_dict"], rtol=1e-3, atol=1e-4)


def test_a_run_on_a_mixture_resumes_exactly(fit: Command, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("Some text of another kind. " * 200)
    sources = f"--data.source={{{corpus}: 0.7, {tmp_path}/other.txt: 0.3}}"
    fit("whole", sources)
    for step in (4, 10):
        with pytest.MonkeyPatch.context() as patch:
            crash_in(patch, "training_step", step)
            with pytest.raises(Crash):
                fit("broken", sources)
    fit("broken", sources)
    assert_same("whole", "broken")
    message = fit("broken", f"--data.source={{{corpus}: 0.6, {tmp_path}/other.txt: 0.4}}", fails=True)
    assert "data.source was " in message


def completed(progress: Any, path: str = "") -> dict[str, int]:
    """Number of completed events of each kind, as counted by the Trainer."""
    if not isinstance(progress, dict):
        return {path: progress} if path.endswith(".completed") else {}
    return {name: n for key, value in progress.items() for name, n in completed(value, f"{path}.{key}").items()}


def test_the_computed_progress_equals_the_trainers_own(fit: Command) -> None:
    fit("whole", "--data.micro_batch_size=2")
    counted = torch.load(folder("whole") / "step_00000010.ckpt", weights_only=True)["loops"]["fit_loop"]
    fresh = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False).fit_loop.state_dict()
    computed = progress_after(10, 2, fresh)
    validation = {name for name in completed(counted) if ".val_loop" in name}
    assert len(completed(counted)) > len(validation) + 6
    assert {k: n for k, n in completed(computed).items() if k not in validation} == {
        k: n for k, n in completed(counted).items() if k not in validation
    }


def test_the_newest_and_the_best_checkpoints_are_kept(fit: Command) -> None:
    fit("whole", "--checkpoint.every_n_steps=2")
    assert [path.name for path in checkpoints_in(folder("whole"))] == ["step_00000012.ckpt", "step_00000010.ckpt"]
    fit("short", "--checkpoint.every_n_steps=2", "--checkpoint.keep_last=1", "--model.optimizer.init_args.lr=3.0")
    kept = {path.name for path in folder("short").iterdir()}
    best = (folder("short") / "best.ckpt").resolve().name
    assert kept == {f"{step}{end}" for step in ("step_00000012.ckpt", best) for end in ("", ".sha256")} | {
        "last.ckpt",
        "best.ckpt",
    }


def test_an_interval_in_minutes_is_measured_from_the_last_checkpoint(
    fit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    minutes = [0.0]  # a step takes a minute, and step 7 takes five
    original = LitLM.training_step

    def timed(self: LitLM, *args: Any) -> Tensor:
        minutes[0] += 5 if self.global_step == 6 else 1
        return original(self, *args)

    monkeypatch.setattr("lit_lm.training.checkpointing.monotonic", lambda: 1000 + 60 * minutes[0])
    monkeypatch.setattr(LitLM, "training_step", timed)
    every = ["--checkpoint.every_n_steps=null", "--checkpoint.every_n_minutes=2.5", "--checkpoint.keep_last=99"]
    fit("timed", *every, "--trainer.limit_val_batches=0")
    steps = [int(path.stem.removeprefix("step_")) for path in checkpoints_in(folder("timed"))]
    assert steps == [12, 10, 7, 6, 3]
    message = fit("both", "--checkpoint.every_n_minutes=0", fails=True)
    assert "every_n_minutes is 0.0; it must be more than 0" in message
    assert "every_n_steps is 3 and every_n_minutes is 0.0; set only one of them" in message


def test_pruning_keeps_the_new_checkpoint_despite_a_damaged_later_one(fit: Command) -> None:
    fit("whole", "--trainer.max_steps=6", "--trainer.val_check_interval=50")
    (folder("whole") / "step_00000006.ckpt").write_bytes(b"damaged")
    fit("whole", "--trainer.max_steps=5", "--trainer.val_check_interval=50", "--checkpoint.keep_last=1")
    assert [path.name for path in checkpoints_in(folder("whole"))] == ["step_00000005.ckpt"]
    assert state("whole")["global_step"] == 5


def test_the_best_checkpoint_of_another_run_is_not_reported(fit: Command) -> None:
    fit("good", "--trainer.max_steps=6")
    printed = fit("worse", "--model.optimizer.init_args.lr=9.0", f"--ckpt_path={folder('good')}/last.ckpt")
    assert "(step 5)" not in printed
    assert "(step 6)" not in printed
    links = re.findall(r"(?:best|last) checkpoint: +(\S+)", printed)
    assert links
    assert all("logs/worse/" in link and Path(link).exists() for link in links)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_stop_signal_saves_a_checkpoint_and_prints_how_to_resume(
    fit: Command, number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit("whole")
    original = LitLM.training_step

    def signaled(self: LitLM, *args: Any) -> Tensor:
        if self.global_step == 4:
            os.kill(os.getpid(), number)
        return original(self, *args)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(LitLM, "training_step", signaled)
        with pytest.raises(SystemExit) as stop:
            fit("stopped")
    assert stop.value.code == 128 + number
    assert f"stopped by {number.name} after step 5; saved to {folder('stopped')}/step_00000005.ckpt" in (
        capsys.readouterr().out
    )
    assert signal.getsignal(number) == before
    fit("stopped")
    assert_same("whole", "stopped")


def test_a_full_disk_loses_a_checkpoint_and_the_second_time_in_a_row_ends_the_run(
    fit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit("whole")
    calls = []
    original = torch.save

    def full(content: Any, file: Any) -> None:
        calls.append(content["global_step"])
        file.write(b"half of it")
        if content["global_step"] in broken:
            raise OSError(28, "No space left on device")
        original(content, file)

    monkeypatch.setattr(torch, "save", full)
    broken = {6}
    printed = fit("once")
    assert "the checkpoint of step 6 could not be written ([Errno 28] No space left on device:" in printed
    assert "training continues" in printed
    broken = {6, 9}
    message = fit("twice", "--trainer.val_check_interval=50", fails=True)
    assert "this is the second time in a row" in message
    assert f"the last good one is {folder('twice')}/step_00000003.ckpt" in message
    broken = {12}
    message = fit("last", fails=True)
    assert "the last checkpoint, of step 12, is missing; to resume, run the same command with" in message
    assert "done:" not in message
    assert "training continues" not in message
    assert not list(folder("twice").glob(".*"))


def test_damaged_checkpoints_are_reported_and_skipped(fit: Command) -> None:
    fit("whole")
    fit("damaged")
    newest = folder("damaged") / "step_00000012.ckpt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 3] ^= 1
    newest.write_bytes(content)
    printed = fit("damaged")
    assert f"{newest} is damaged: it does not match its digest; skipping it" in printed
    assert_same("whole", "damaged")


def test_an_explicit_learning_rate_overrides_the_checkpoints(fit: Command) -> None:
    fit("whole", "--trainer.max_steps=6")
    fit("whole", "--trainer.max_steps=12", "--model.optimizer.init_args.lr=0.5")
    rates = dict(curve("whole", "train/learning_rate"))
    assert rates[6] == pytest.approx(2e-2 * 6 / 51)  # in warmup
    assert rates[7] == pytest.approx(0.5 * 7 / 51)


def test_a_torch_schedule_resumes_and_uses_the_options_of_the_config(fit: Command) -> None:
    schedule = ["--model.schedule=torch.optim.lr_scheduler.StepLR", "--model.schedule.gamma=0.5"]
    fit("whole", *schedule, "--model.schedule.step_size=4")
    with pytest.MonkeyPatch.context() as patch:
        crash_in(patch, "training_step", 7)
        with pytest.raises(Crash):
            fit("parts", *schedule, "--model.schedule.step_size=4")
    fit("parts", *schedule, "--model.schedule.step_size=4")
    assert_same("whole", "parts")
    fit("changed", *schedule, "--model.schedule.step_size=100", "--trainer.max_steps=6")
    fit("changed", *schedule, "--model.schedule.step_size=4", "--model.optimizer.lr=0.5")
    rates = dict(curve("changed", "train/learning_rate"))
    assert rates[6] == pytest.approx(2e-2)
    assert [rates[step] for step in (7, 8, 9, 12)] == [0.25, 0.25, 0.125, 0.125]


def test_a_source_with_changed_content_is_detected(fit: Command, corpus: Path, tmp_path: Path) -> None:
    source = tmp_path / "mine.txt"
    source.write_text(corpus.read_text(encoding="utf-8"), encoding="utf-8")
    fit("whole", f"--data.source={source}", "--trainer.max_steps=6")
    source.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")  # new modification time, same text
    fit("whole", f"--data.source={source}", "--trainer.max_steps=8")
    source.write_text(source.read_text(encoding="utf-8").replace("cat", "cow"), encoding="utf-8")
    assert "has changed since the checkpoint was written" in fit("whole", f"--data.source={source}", fails=True)
    assert "12 steps" in fit("whole", f"--data.source={source}", "--allow_changes=true")


def test_ckpt_path_can_be_set_in_a_config(fit: Command, lit_lm: Command, tmp_path: Path) -> None:
    fit("whole", "--trainer.max_steps=6")
    config = Path("logs/whole/version_0/config.yaml")
    assert yaml.safe_load(config.read_text(encoding="utf-8"))["ckpt_path"] is None
    (tmp_path / "more.yaml").write_text("ckpt_path: last\ntrainer: {max_steps: 8}", encoding="utf-8")
    printed = lit_lm("fit", "--config", config, "--config=more.yaml")
    assert f"resuming from {folder('whole')}/step_00000006.ckpt" in printed
    assert "val/loss" in lit_lm("validate", "--config", config, "--ckpt_path", folder("whole") / "last.ckpt")


def test_options_that_decide_the_data_change_only_with_allow_changes(fit: Command) -> None:
    fit("whole", "--trainer.max_steps=6")
    changed = ["--seed=5", "--data.batch_size=8", "--model.net.context_length=16"]
    message = fit("whole", *changed, fails=True)
    assert "seed was 0 and is 5" in message
    assert "data.batch_size was 4 and is 8" in message
    assert "model.net.context_length was 32 and is 16" in message
    assert "12 steps" in fit("whole", "--data.batch_size=8", "--allow_changes=true")


def test_a_run_keeps_its_document_mask(fit: Command, lit_lm: Command) -> None:
    fit("whole", "--model.document_mask=true")
    with pytest.MonkeyPatch.context() as patch:
        crash_in(patch, "training_step", 7)
        with pytest.raises(Crash):
            fit("broken", "--model.document_mask=true")
    assert "model.document_mask was True and is False" in fit("broken", "--model.document_mask=false", fails=True)
    (loss,) = re.findall(r"step 12: (val/loss [0-9.]+)", fit("broken"))
    assert_same("whole", "broken")
    last = ["--ckpt_path", folder("broken") / "last.ckpt"]
    assert loss in lit_lm("validate", *last)
    assert loss not in lit_lm("validate", *last, "--model.document_mask=false")


def test_resuming_a_finished_run_does_nothing(fit: Command) -> None:
    fit("whole")
    before = state("whole")
    assert "already at step 12; nothing to do" in fit("whole")
    torch.testing.assert_close(state("whole")["state_dict"], before["state_dict"], rtol=0, atol=0)


def z_loss_at(patch: pytest.MonkeyPatch, steps: range, value: float) -> None:
    """Change the loss of some steps by another z_loss."""
    original = LitLM.training_step

    def changed(self: LitLM, *args: Any) -> Tensor:
        self.z_loss = value if self.global_step in steps else 0.0
        return original(self, *args)

    patch.setattr(LitLM, "training_step", changed)


def test_a_step_with_a_non_finite_loss_is_skipped(fit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    z_loss_at(monkeypatch, range(4, 6), math.nan)
    printed = fit("skipping")
    assert re.search(
        r"step 5: loss nan, gradient norm nan; its windows are \[\d+, \d+, \d+, \d+\]; the step is skipped", printed
    )
    assert "step 6: loss nan" in printed
    assert curve("skipping", "train/skipped_steps")[-1] == (12, 2.0)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state("skipping")["state_dict"].values())
    entries = state("skipping")["optimizer_states"][0]["state"].values()
    steps = {int(entry["step"]) for entry in entries if "exp_avg" in entry}  # those of AdamW
    assert steps == {10}


def test_too_many_skipped_steps_end_the_run(fit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    z_loss_at(monkeypatch, range(4, 12), math.nan)
    message = fit("hopeless", "--model.max_skipped_steps=3", fails=True)
    assert message.startswith("lit-lm: error: step 7: loss nan")
    assert "skipped 3 steps in a row (model.max_skipped_steps is 3); stopping" in message


def test_a_loss_spike_is_reported_with_its_windows(fit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LossSpikes, "AFTER", 4)
    z_loss_at(monkeypatch, range(8, 9), 0.3)  # adds about 0.3 * log(300)^2 = 9.8 to a loss of log(300) = 5.7
    (line,) = [line for line in fit("spiky").splitlines() if "spike" in line]
    assert line.startswith("step 9: loss spike: 1")
    windows = json.loads(line[line.index("[") : line.index("]") + 1])
    assert len(windows) == 4


def test_running_mean_and_variance_start_as_plain_averages() -> None:
    spikes = LossSpikes()
    losses = [5.0, 4.0, 4.5, 3.0, 3.5]
    module = LitLM(TransformerConfig(vocab_size=8, context_length=4, d_model=4, num_layers=1, num_heads=1))
    for step, value in enumerate(losses, start=1):
        module.steps.last_read = [StepTaken(step, value, 1.0)]
        for _ in range(2):  # the second call has no new step
            spikes.on_train_batch_end(Trainer(accelerator="cpu", logger=False), module)
    assert spikes.mean == pytest.approx(statistics.mean(losses))
    assert spikes.variance == pytest.approx(statistics.pvariance(losses))


def test_data_show_prints_the_windows_of_a_step(fit: Command, lit_lm: Command, corpus: Path) -> None:
    fit("whole")
    printed = lit_lm("data", "show", "--ckpt_path", folder("whole") / "last.ckpt", "--step", 7)
    texts = [part.partition(" ---\n")[2].strip("\n") for part in printed.split("--- step 7, ")[1:]]
    assert len(texts) == 4
    original = corpus.read_text(encoding="utf-8")
    for text in texts:
        assert max(text.split("<|endoftext|>"), key=len).strip() in original
    assert "it must be between 1 and" in lit_lm(
        "data", "show", "--ckpt_path", folder("whole") / "last.ckpt", "--step", 0, fails=True
    )
