"""Where the project depends on more of its libraries than they document: the complete list, with a test for each.

A test fails when a new version of a library changes what is relied on, so that nothing breaks in silence. Tested
elsewhere, with what they are part of:

    the counters of Lightning's fit loop after a number of steps (training/resume.py)
        tests/training/test_checkpointing.py::test_the_computed_progress_equals_the_trainers_own
    hooks on_load_checkpoint run before counters and schedules are restored (training/checkpointing.py, module.py)
        tests/training/test_checkpointing.py::test_a_run_resumes_exactly_after_an_interruption_anywhere
    torch.load's message for a pickle that would call code (checkpoint.py)
        tests/test_checkpoint.py::test_a_file_that_would_run_code_is_refused_by_name
    jsonargparse._typehints.discard_init_args_on_class_path_change (cli/base.py)
        tests/cli/test_cli.py::test_another_optimizer_starts_from_its_own_defaults
    ArgumentParser._actions of argparse (cli/base.py, completion_script.py, help.py, options.py)
        tests/cli/test_completion.py::test_words_are_completed
    messages of argparse and jsonargparse about unknown names (cli/checks.py)
        tests/cli/test_cli.py::test_a_user_error_is_reported
    torch._fused_adamw_, _foreach_add_, _foreach_sub_ (optim/adamw.py)
        tests/optim/test_adamw.py::test_adamw_matches_torch_for_100_steps_with_changing_rates
        tests/optim/test_muon.py::test_gradients_are_divided_by_grad_scale_and_ignored_if_found_inf_is_1
    torch._foreach_copy_, _foreach_div_, _foreach_lerp, _foreach_lerp_, _foreach_mul_ (optim/muon.py, sgd.py, fused.py)
        tests/optim/test_muon.py::test_muon_matches_torch
        tests/optim/test_muon.py::test_gradients_are_divided_by_grad_scale_and_ignored_if_found_inf_is_1
        tests/optim/test_sgd.py::test_sgd_decay_matches_torch_with_decaying_rates
    the attribute _dynamo_marked_constant of a function (model/attention.py)
        tests/model/test_attention.py::test_compiled_attention_is_the_same
    torch._functorch.config.autograd_cache_allow_custom_autograd_functions (training/hardware.py)
        tests/training/test_checkpointing.py::test_a_compiled_run_resumes_exactly_and_matches_an_eager_run
    DDPStrategy._ddp_kwargs (cli/fit.py), _TrainingEpochLoop._broadcast_sigterm_tensor (training/checkpointing.py)
        tests/training/test_processes.py::test_a_step_sends_two_messages_and_all_skip_and_stop_together
    UntypedStorage._checkpoint_offset after torch.load to the meta device, skip_data, FakeTensorMode
    (training/joint_write.py)
        tests/training/test_sharding.py::test_a_checkpoint_is_that_of_one_process
    ModelParallelStrategy._data_parallel_size and the order of its hooks (training/sharding.py)
        tests/training/test_sharding.py::test_losses_are_those_of_one_process
    DataLoader workers do not divide a shard that is read in batches (data/hub.py)
        tests/data/test_streaming.py::test_a_data_set_of_the_hub_is_read_with_and_without_workers
    the layout of tokenizer.json (tokenizer/, data/fast_bpe.py)
        tests/tokenizer/test_tokenizer.py::test_ids_equal_those_from_applying_the_merges_one_by_one
"""

import ast
import inspect
import os
import re
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Command
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.utils.data import DataLoader

from lit_lm.cli.base import UNHELPFUL_WARNINGS
from lit_lm.cli.fit import NoProfiler, TrainerCLI
from lit_lm.optim import AdamW

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:.*LeafSpec",
    "ignore:.*but have no .val_dataloader",
    "ignore:.*your dataloader is not resumable",
)


def test_every_test_in_the_list_exists() -> None:
    tests = re.findall(r"(tests/\S+\.py)::(test_\w+)", __doc__)
    assert len(tests) == __doc__.count("::")
    for file, name in tests:
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{name}"


def test_every_private_name_of_a_library_is_in_this_file() -> None:
    """A private attribute that no code of the project assigns or defines belongs to a library."""
    nodes = [node for file in (ROOT / "lit_lm").rglob("*.py") for node in ast.walk(ast.parse(file.read_text("utf-8")))]
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
    own = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    own |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    private = {name for name in read - own if re.match("_(?!_)", name)} - {"_replace"}  # documented: named tuples
    assert "_fused_adamw_" in private
    assert private <= set(re.findall(r"\w+", Path(__file__).read_text(encoding="utf-8")))


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
    """data.datamodule: LMDataModule.setup."""

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


def test_the_fit_loop_says_how_many_batches_came_before_it_was_resumed(tmp_path: Path) -> None:
    """data.loader.num_micro_batches."""

    class Reading(Plain):
        def train_dataloader(self) -> DataLoader[Tensor]:
            loop = self.trainer.fit_loop
            self.read = loop.restarting, loop.epoch_loop.batch_progress.current.ready
            return loader()

    first, resumed, run = Reading(), Reading(), trainer(max_steps=2)
    run.fit(first)
    run.save_checkpoint(tmp_path / "a.ckpt")
    trainer(max_steps=4).fit(resumed, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert first.read == (False, 0)
    assert resumed.read == (True, 2)


def test_the_layout_of_the_fit_loops_state() -> None:
    """training.resume.progress_after sets these counters; a new one must be considered there."""

    def names(state: dict[str, Any]) -> dict[str, Any]:
        return {name: names(value) if isinstance(value, dict) else type(value) for name, value in state.items()}

    def counters(*kinds: str) -> dict[str, Any]:
        return {part: dict.fromkeys(kinds, int) for part in ("total", "current")}

    step, event = counters("ready", "completed"), counters("ready", "started", "completed")
    item = counters("ready", "started", "processed", "completed")
    batch = item | {"is_last_batch": bool}
    assert names(trainer().fit_loop.state_dict()) == {
        "state_dict": {},
        "epoch_progress": item,
        "epoch_loop.state_dict": {"_batches_that_stepped": int},
        "epoch_loop.batch_progress": batch,
        "epoch_loop.scheduler_progress": step,
        "epoch_loop.automatic_optimization.state_dict": {},
        "epoch_loop.automatic_optimization.optim_progress": {"optimizer": {"step": step, "zero_grad": event}},
        "epoch_loop.manual_optimization.state_dict": {},
        "epoch_loop.manual_optimization.optim_step_progress": step,
        "epoch_loop.val_loop.state_dict": {},
        "epoch_loop.val_loop.batch_progress": batch,
    }


class PlainData(LightningDataModule):
    def __init__(self, size: int = 12) -> None:
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self) -> DataLoader[Tensor]:
        return loader(self.hparams["size"])

    def state_dict(self) -> dict[str, Any]:
        return {"read": 1}


def test_the_names_in_a_checkpoint(tmp_path: Path) -> None:
    """checkpoint.read_checkpoint, training.module, training.checkpointing."""
    run = trainer(max_steps=1)
    run.fit(Plain(), datamodule=PlainData())
    run.save_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert content["global_step"] == 1
    assert content["loops"]["fit_loop"].keys() == run.fit_loop.state_dict().keys()
    assert content["datamodule_hyper_parameters"]["size"] == 12
    assert content["PlainData"] == {"read": 1}
    assert {"state_dict", "optimizer_states", "lr_schedulers", "callbacks"} <= content.keys()


def test_a_trainer_gives_its_schedules_and_data_module_and_takes_other_loggers(tmp_path: Path) -> None:
    """training.module, training.run_folder."""

    class Scheduled(Plain):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            self.scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
            return [optimizer], [self.scheduler]

        def on_train_start(self) -> None:
            self.given = [config.scheduler for config in self.trainer.lr_scheduler_configs]

    class Logging(Callback):
        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            trainer.loggers = [CSVLogger(tmp_path, name="here", version="")]

    module, data, run = Scheduled(), PlainData(), trainer(max_steps=1, log_every_n_steps=1, callbacks=[Logging()])
    run.fit(module, datamodule=data)
    assert module.given == [module.scheduler]
    assert run.datamodule is data  # type: ignore[attr-defined]
    assert Path(str(run.log_dir)) == tmp_path / "here"


def test_a_callback_can_change_the_exit_code_after_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """inference.predictions.PredictionWriter."""

    class Interrupted(Plain):
        def predict_step(self, batch: Tensor, batch_idx: int) -> None:
            raise KeyboardInterrupt

    class Exiting(Callback):
        def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
            raise SystemExit(130 if isinstance(exception, KeyboardInterrupt) else 3)

    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as stop:
            trainer(callbacks=[Exiting()]).predict(Interrupted(), loader())
    finally:
        signal.signal(signal.SIGINT, before)
    assert stop.value.code == 130


def test_a_trainer_that_predicts_notices_sigterm_and_goes_on() -> None:
    """inference.predictions.PredictionWriter."""

    class Terminated(Plain):
        def predict_step(self, batch: Tensor, batch_idx: int) -> bool:
            if batch_idx == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return self.trainer.received_sigterm

    assert trainer().predict(Terminated(), loader(3)) == [False, True, True]


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


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_no_argument_of_the_trainers_methods_becomes_an_option(command: str) -> None:
    """cli.fit.TrainerCLI.subcommands."""
    arguments = inspect.signature(getattr(Trainer, command)).parameters.keys() - {"self"}
    assert arguments <= TrainerCLI.subcommands(SimpleNamespace(command=command))[command]  # type: ignore[arg-type]


def test_the_trainer_measures_by_profile() -> None:
    """cli.fit.NoProfiler."""
    profiler = NoProfiler()
    assert profiler.profile("anything") is NoProfiler.NOTHING
    assert trainer(profiler=profiler).profiler is profiler


def test_fused_optimizers_load_the_number_of_steps_to_the_device_of_the_parameter() -> None:
    """optim.adamw: "fused" in the defaults. Without it, the number of steps stays where it is."""
    devices = []
    for fused in (True, False):
        optimizer = AdamW([torch.nn.Parameter(torch.zeros(2, device="meta"))])
        optimizer.param_groups[0]["fused"] &= fused
        saved = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
        optimizer.load_state_dict(optimizer.state_dict() | {"state": {0: saved}})
        (state,) = optimizer.state.values()
        devices.append(state["step"].device.type)
    assert devices == ["meta", "cpu"]


def test_modules_list_their_forward_hooks() -> None:
    """inference.native.support.unsupported."""
    layer = torch.nn.Identity()
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks
    layer.register_forward_hook(lambda *_: None)
    layer.register_forward_pre_hook(lambda *_: None)
    assert layer._forward_hooks
    assert layer._forward_pre_hooks


def sources() -> Iterator[str]:
    for package in ("lightning", "torch.utils._pytree", "torch.optim.lr_scheduler"):
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        files = Path(spec.origin).parent.rglob("*.py") if spec.submodule_search_locations else [Path(spec.origin)]
        for file in files:
            yield " ".join(re.sub(r"[\"'`]", "", file.read_text(encoding="utf-8")).split())


def test_the_warnings_that_are_silenced_still_exist() -> None:
    """cli.base.quieten_libraries, training.module, training.resume.go_to_step."""
    text = "\n".join(sources())
    own = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "lit_lm").rglob("*.py"))
    others = re.findall(r'filterwarnings\("ignore", (?:message=)?"(.+)"\)', own)
    assert len(others) == own.count("filterwarnings(") - 1
    for pattern in (*UNHELPFUL_WARNINGS, *others):
        words = [re.escape(part) for part in pattern.split(".*") if part]
        loose = ".*".join(words).replace(r"\.treespec", r".treespec").replace("'", "")
        assert re.search(loose, text), pattern
