"""Where the project depends on more of its libraries than they document: a list, with a test for each.

A test fails when a new version of a library changes what is relied on, so that nothing breaks in silence. Tested
elsewhere, with what they are part of:

    the state of Lightning's fit loop (training/resume.py)      test_the_computed_progress_is_what_the_trainer_counts
    torch.load's message for a pickle that would call code      test_a_file_that_would_run_code_is_refused_by_name
    messages of argparse and jsonargparse about unknown names   test_a_mistake_gets_a_message
    torch._fused_adamw_ and torch._foreach_*                    tests/optim/test_adamw.py, test_muon.py
"""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.utils.data import DataLoader

from lit_lm.cli.base import UNHELPFUL_WARNINGS
from lit_lm.cli.fit import NoProfiler, TrainerCLI

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*LeafSpec", "ignore:.*but have no .val_dataloader"
)


class Plain(LightningModule):
    """Records when it is validated."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.validated: list[int] = []
        self.stop_at = -1

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.weight * batch.sum()

    def on_train_batch_end(self, *_: Any) -> None:
        if self.global_step == self.stop_at:
            self.trainer.should_stop = True

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validated.append(self.global_step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(**options: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(**{"accelerator": "cpu", "logger": False, "num_sanity_val_steps": 0} | quiet | options)


def loader(number: int = 12) -> DataLoader[Tensor]:
    return DataLoader(torch.ones(number, 1), batch_size=1)  # type: ignore[arg-type]


def test_a_trainer_that_is_asked_to_stop_validates_first() -> None:
    """LitLM.on_train_batch_end: a run ends with a validation."""
    module = Plain()
    module.stop_at = 5
    trainer(max_steps=5, val_check_interval=100, check_val_every_n_epoch=None).fit(module, loader(), loader(1))
    assert module.validated == [5]


def test_the_length_of_a_run_and_its_accumulation_can_be_set_in_setup() -> None:
    """LMDataModule._set_up_steps."""

    class Changing(Plain):
        def setup(self, stage: str) -> None:
            self.trainer.fit_loop.epoch_loop.max_steps = 3
            self.trainer.accumulate_grad_batches = 2
            self.trainer.val_check_interval = 4

    module = Changing()
    run = trainer(max_steps=100, val_check_interval=2, check_val_every_n_epoch=None)
    run.fit(module, loader(), loader(1))
    assert module.global_step == run.max_steps == 3
    assert module.validated == [2]


def test_the_fit_loop_says_how_many_batches_came_before_it_was_resumed() -> None:
    """data.windows.num_micro_batches."""
    run = trainer(max_steps=2)
    run.fit(Plain(), loader())
    assert run.fit_loop.epoch_loop.batch_progress.current.ready == 2
    assert not run.fit_loop.restarting


def test_trainers_keep_their_logging_interval() -> None:
    """LitLM.logs_at."""
    assert trainer(log_every_n_steps=7).log_every_n_steps == 7  # type: ignore[attr-defined]


def test_the_plugin_for_checkpoints_can_be_replaced() -> None:
    """LitLM.setup."""
    run = trainer()
    assert type(run.strategy.checkpoint_io) is TorchCheckpointIO
    run.strategy.checkpoint_io = other = TorchCheckpointIO()
    assert run.strategy.checkpoint_io is other


def test_the_command_line_interface_calls_our_hooks(run_folder: Path, lit_lm: Command) -> None:
    """cli.base: LightningCLI looks for methods named like the Trainer's, and seeds by `_set_seed`."""
    assert callable(LightningCLI._set_seed)
    assert {"fit", "validate", "test"} <= vars(TrainerCLI).keys()
    lit_lm("validate", "--ckpt_path", run_folder, "--seed", 1234)
    assert torch.initial_seed() == 1234


def test_the_trainer_measures_by_profile() -> None:
    """cli.fit.NoProfiler."""
    profiler = NoProfiler()
    assert profiler.profile("anything") is NoProfiler.NOTHING
    assert trainer(profiler=profiler).profiler is profiler


def sources() -> Iterator[str]:
    for package in ("lightning", "torch.utils._pytree", "torch.optim.lr_scheduler"):
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        files = Path(spec.origin).parent.rglob("*.py") if spec.submodule_search_locations else [Path(spec.origin)]
        for file in files:
            yield " ".join(re.sub(r"[\"'`]", "", file.read_text(encoding="utf-8")).split())


def test_the_warnings_that_are_silenced_still_exist() -> None:
    """cli.base.quieten_libraries, training.resume.go_to_step."""
    text = "\n".join(sources())
    for pattern in (*UNHELPFUL_WARNINGS, ".*lr_scheduler.step.* before"):
        words = [re.escape(part) for part in pattern.split(".*") if part]
        loose = ".*".join(words).replace(r"\.treespec", r".treespec").replace("'", "")
        assert re.search(loose, text), pattern
