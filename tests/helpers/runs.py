"""Interrupted runs, and comparisons of their checkpoints and curves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_lm.data.datamodule import LMDataModule
from lit_lm.training.module import LitLM


class Crash(Exception):
    """Simulates SIGKILL: nothing in the project catches it."""


def crash_in(patch: pytest.MonkeyPatch, hook: str, step: int) -> None:
    """Interrupt the run in LitLM's `hook` after `step` steps."""
    original = getattr(LitLM, hook)

    def crashing(self: LitLM, *args: Any) -> Any:
        if self.global_step == step:
            raise Crash
        return original(self, *args)

    patch.setattr(LitLM, hook, crashing)


def folder(name: str) -> Path:
    return Path("logs") / name / "version_0" / "checkpoints"


def state(name: str) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder(name) / "last.ckpt", weights_only=True)
    return content


def assert_same(a: str, b: str) -> None:
    one, other = state(a), state(b)
    assert one["global_step"] == other["global_step"]
    names = [[state.pop("class") for state in run["optimizer_states"]] for run in (one, other)]
    assert names[0] == names[1]
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(one[key], other[key], rtol=0, atol=0)
    assert one["callbacks"]["LossCurves"] == other["callbacks"]["LossCurves"]


def curve(name: str, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(Path("logs") / name / "version_0"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def prepared(data: LMDataModule, **trainer: Any) -> tuple[LMDataModule, Trainer]:
    options = {"max_steps": 3, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    trainer_ = Trainer(**(options | {"enable_progress_bar": False, "enable_model_summary": False} | trainer))
    data.trainer = trainer_
    data.prepare_data()
    data.setup("fit")
    return data, trainer_
