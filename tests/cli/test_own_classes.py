"""The user's own classes, named on the command line or in a config, train and resume."""

from pathlib import Path

import pytest
import torch
import yaml
from conftest import TINY, Command
from helpers.own_classes import MYLAB
from helpers.runs import Crash, crash_in
from torch.testing import assert_close

from lit_lm.checkpoint import read_checkpoint


@pytest.fixture
def fit(corpus: Path, cache: Path, lit_lm: Command, tmp_path: Path) -> Command:
    (tmp_path / "mylab.py").write_text(MYLAB, encoding="utf-8")

    def command(*more: object, steps: int = 6, fails: bool = False) -> str:
        options = [*TINY, f"--data.source={corpus}", f"--data.cache_dir={cache}", f"--trainer.max_steps={steps}",
                   "--checkpoint.every_n_steps=3", "--trainer.log_every_n_steps=1"]  # fmt: skip
        return lit_lm("fit", *options, *more, fails=fails)

    return command


def state(name: str) -> dict[str, torch.Tensor]:
    return read_checkpoint(Path("logs") / name / "version_0" / "checkpoints" / "last.ckpt").weights


OWN = {
    "optimizer": ["--model.optimizer=mylab.Lion", "--model.optimizer.lr=3e-3"],
    "schedule": ["--model.schedule=mylab.Halving", "--model.schedule.init_args.every=2"],
    "model": ["--model", "mylab.Halved", "--model.factor=0.25", "--model.weights=[1.0, 2.0]"],
    "data": ["--data=mylab.Reversed", "--data.flip=false"],
    "callback": ["--trainer.callbacks={class_path: mylab.Counter, init_args: {every: 2}}"],
    "logger": ["--trainer.logger={class_path: mylab.MyLogger, init_args: {save_dir: csv}}"],
    "source": ["--data.source={class_path: mylab.Stories, init_args: {animal: yak}}"],
}


@pytest.mark.parametrize("what", OWN)
def test_the_users_own_class_trains_and_resumes_exactly(fit: Command, lit_lm: Command, what: str) -> None:
    fit("--name=whole", *OWN[what])
    with pytest.MonkeyPatch.context() as patch:
        crash_in(patch, "training_step", 4)
        with pytest.raises(Crash):
            fit("--name=parts", *OWN[what])
    printed = fit("--name=parts", "--ckpt_path=last", *OWN[what])
    assert "resuming from logs/parts/version_0/checkpoints/step_00000003.ckpt" in printed
    if what == "callback":
        assert "counted 6 steps" in printed
    assert_close(state("parts"), state("whole"), rtol=0, atol=0)
    config = Path("logs/parts/version_0/config.yaml")
    again = lit_lm("fit", "--config", config, "--name=again")  # the config of a run is complete
    assert "done: 6 steps" in again
    if what == "logger":
        assert list(Path("csv").rglob("metrics.csv"))
        assert not list(Path("logs").rglob("events.out.*"))
    if what == "source":
        assert "yak" in lit_lm("data", "show", "--config", config)


@pytest.mark.parametrize("what", ["model", "data"])
def test_a_checkpoint_of_the_users_own_class_says_which_it_needs(fit: Command, lit_lm: Command, what: str) -> None:
    fit("--name=run", *OWN[what])
    last = Path("logs/run/version_0/checkpoints/last.ckpt")
    name = {"model": "mylab.Halved", "data": "mylab.Reversed"}[what]
    message = lit_lm("validate", "--ckpt_path", last, fails=True)
    assert f"the checkpoint was trained with the class {name}; to use it, pass --{what} {name}" in message
    assert "val/loss" in lit_lm("validate", "--ckpt_path", last, f"--{what}", name)
    assert lit_lm("generate", "--ckpt_path", last, "The", "--max_new_tokens", 2).startswith("The")


@pytest.mark.parametrize("what", ["optimizer", "schedule", "source"])
def test_a_class_named_only_in_the_checkpoint_is_not_imported(
    fit: Command, lit_lm: Command, what: str, corpus: Path, cache: Path
) -> None:
    fit("--name=run", *OWN[what])
    last = Path("logs/run/version_0/checkpoints/last.ckpt")
    Path("mylab.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    message = lit_lm("fit", "--ckpt_path", last, "--trainer.max_steps=8", f"--data.cache_dir={cache}", fails=True)
    assert "mylab." in message
    assert "to use it, " in message


def test_short_names_refer_to_lit_lm_optim(fit: Command, tmp_path: Path) -> None:
    def optimizer(*options: object) -> str:
        fit(*options, steps=1)
        newest = max(Path("logs/run").glob("version_*"), key=lambda path: int(path.name.removeprefix("version_")))
        config = yaml.safe_load((newest / "config.yaml").read_text(encoding="utf-8"))
        return f"{config['model']['optimizer']['class_path']} {config['model']['schedule']['class_path']}"

    own = "lit_lm.optim.AdamW lit_lm.optim.WarmupCosine"
    assert optimizer("--model.optimizer=AdamW", "--model.schedule", "WarmupCosine") == own
    (tmp_path / "short.yaml").write_text("model: {optimizer: AdamW, schedule: {class_path: WarmupCosine}}")
    assert optimizer("--config=short.yaml") == own
    assert optimizer("--model.optimizer=torch.optim.AdamW").startswith("torch.optim.AdamW ")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model=mylab.Nothing", "model_class is mylab.Nothing, which cannot be imported"),
        ("--model=nowhere.Halved", "model_class is nowhere.Halved, which cannot be imported"),
        ("--model_class=../x", "model_class is ../x, which cannot be imported"),
        ("--model=mylab.Counter", "model_class is mylab.Counter; it must be a subclass of LitLM"),
        ("--data=mylab.Halved", "data_class is mylab.Halved; it must be a subclass of LMDataModule"),
        ("--model.optimizer=nowhere.Lion", "optimizer is nowhere.Lion, which cannot be imported: No module named"),
        ("--model.schedule=mylab.Nothing", "model.schedule is mylab.Nothing, which cannot be imported: module 'mylab'"),
        ("--trainer.callbacks=mylab.Nothing", "trainer.callbacks is mylab.Nothing, which cannot be imported: module"),
        ("--data.source={class_path: mylab.Nothing}", "the source mylab.Nothing cannot be created"),
        ("--data.source={class_path: mylab.Halving}", "the source mylab.Halving cannot be created"),
    ],
)
def test_an_unusable_class_is_reported(fit: Command, option: str, message: str) -> None:
    assert message in fit(option, fails=True)
