"""`lit-lm fit | validate | test`: LightningCLI for LitLM and LMDataModule, with one seed and one run name."""

import io
import sys
from argparse import SUPPRESS
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy

from lit_lm.checkpoint import Checkpoint, read_checkpoint
from lit_lm.cli.base import BaseCLI, quieten_libraries, report
from lit_lm.cli.checkpoints import chosen_checkpoint
from lit_lm.cli.checks import callback_problems, is_sharded
from lit_lm.cli.mistakes import explained
from lit_lm.files import cache_folder
from lit_lm.model.config import TransformerConfig
from lit_lm.runs import LOGS, newest_good_checkpoint, run_folder, versions
from lit_lm.training.checkpoint_files import CheckpointFiles
from lit_lm.training.checkpointing import CheckpointCallback
from lit_lm.training.console import Console
from lit_lm.training.curves import LossCurves
from lit_lm.training.hardware import best_precision, flush_denormals
from lit_lm.training.init_from import load_weights, shape_problems, tokenizer_problems
from lit_lm.training.module import LitLM
from lit_lm.training.processes import (
    HOW_TO_RESUME,
    check_address,
    check_world_size,
    choose_port,
    lost_process,
    report_lost_processes,
)
from lit_lm.training.run_folder import RunFolder
from lit_lm.training.sample_metrics import SampleMetrics
from lit_lm.training.samples import Samples
from lit_lm.training.sharding import check_division
from lit_lm.training.spikes import LossSpikes
from lit_lm.training.throughput import Throughput


def run(args: Sequence[str], description: str) -> None:
    """Run a command whose help starts with `description`.

    Raises:
        ValueError, OSError: if the arguments, or the files they name, are invalid.
    """
    quieten_libraries(args)
    flush_denormals()
    remedy = HOW_TO_RESUME if args[0] == "fit" else "run the command again"
    report_lost_processes(remedy)
    if args[0] == "fit" and sys.stdout is sys.__stdout__:
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(_Unfailing(1, "w", closefd=False)))
    try:
        (FitCLI if args[0] == "fit" else EvaluateCLI)(args[0], args[1:], description, run=True)
    except (MisconfigurationException, ModuleNotFoundError) as error:  # of a Trainer that cannot be built
        raise ValueError(str(error)) from None
    except ValueError as error:  # jsonargparse's, of a logger whose package is missing, is ten lines
        if "Union subtypes" not in str(error):
            raise
        raise ValueError(explained(" ".join(str(error).split()), [])) from None
    except RuntimeError as error:
        if (why := lost_process(error)) is not None:
            raise ValueError(f"another process ended or cannot be reached ({why}); {remedy}") from None
        if "Error(s) in loading state_dict" not in str(error):
            raise
        raise ValueError(f"the checkpoint does not fit the model: {' '.join(str(error).split())}") from None
    except Exception as error:
        if not type(error).__module__.startswith("wandb."):
            raise
        raise ValueError(f"trainer.logger: {' '.join(str(error).split())}") from None  # for example, no API key


class _Unfailing(io.FileIO):
    """Output that is discarded if it cannot be written: training continues when its reader has closed the pipe."""

    def write(self, data: Any) -> int:
        """Write bytes, or discard them."""
        with suppress(OSError):
            return super().write(data) or 0
        return len(data)


class NoProfiler(PassThroughProfiler):
    """Profiler without overhead: the Trainer calls it about 60 times per step."""

    NOTHING = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        """A context that does nothing."""
        return self.NOTHING


class TrainerCLI(BaseCLI):
    """Command that runs a method of the Trainer."""

    more_callbacks: Sequence[Callback] = ()
    """Callbacks in addition to those of the config."""

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The command, and the arguments of the Trainer's method that are not options."""
        loaders = {"train_dataloaders", "val_dataloaders", "dataloaders"}
        return {self.command: {"model", "datamodule", "ckpt_path", "weights_only", "verbose"} | loaders}

    def instantiate_classes(self) -> None:
        """Build the parts; a model that will be sharded without weights, because it may not fit into a process."""
        sharded = is_sharded(self.options.trainer.strategy)
        with torch.device("meta") if sharded and not self.options.init_from else nullcontext():
            super().instantiate_classes()

    def after_instantiate_classes(self) -> None:
        """Pass the checkpoint and its tokenizer and digests to the Trainer and the data module."""
        self.hand_over_tokenizer()
        if self.checkpoint is not None:
            self.trainer.strategy.checkpoint_io = CheckpointFiles(self.checkpoint)
            if self.command in ("fit", "test") and not self.options.allow_changes:
                self.datamodule.expected_digests = self.checkpoint.digests

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer, with the precision that suits the machine and lit-lm's callbacks."""
        options, built = self.options, self.config_init[self.command]
        if options.trainer.profiler is None:
            kwargs["profiler"] = NoProfiler()
        if options.trainer.precision is None:
            kwargs["precision"] = best_precision(str(options.trainer.accelerator), options.model.net.d_model)
        extra = built.trainer.get("callbacks") or []
        callbacks: list[Callback] = [*(extra if isinstance(extra, list) else [extra]), *self.more_callbacks]
        if self.own_model_class is LitLM and (problems := callback_problems(callbacks)):
            raise ValueError("\n".join(problems))
        own_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
        if options.trainer.enable_progress_bar is not False and not own_bar:
            callbacks.append(built.console if self.command == "fit" else Console())
        try:
            with torch.device("cpu"):
                trainer = super().instantiate_trainer(callbacks=callbacks + self.callbacks(), **kwargs)
        except (AttributeError, RuntimeError, TypeError) as error:  # Lightning does not check every option
            raise ValueError(f"the options of the Trainer are invalid: {error}") from None
        check_world_size(trainer)
        check_address(trainer)
        check_division(trainer, TransformerConfig(**options.model.net.as_dict()))
        choose_port(trainer)
        if options.trainer.strategy == "auto" and isinstance(trainer.strategy, DDPStrategy):
            # gradients stay in the buckets that are sent; the only buffers are the constant tables of RoPE
            trainer.strategy._ddp_kwargs |= {"gradient_as_bucket_view": True, "forward_sync_buffers": False}
        return trainer

    def callbacks(self) -> list[Callback]:
        """Callbacks of the command in addition to the console."""
        return []

    def _run(self, **kwargs: Any) -> None:
        path = None if self.checkpoint is None else self.checkpoint.path
        method = getattr(self.trainer, self.command)
        quiet = {} if self.command == "fit" else {"verbose": False}
        method(self.model, datamodule=self.datamodule, ckpt_path=path, weights_only=True, **quiet)

    fit = validate = test = _run  # LightningCLI calls the method with the name of the command


class FitCLI(TrainerCLI):
    """`lit-lm fit`."""

    trains = True
    resumed: Path | None = None
    """Version folder of the resumed run."""
    start: Checkpoint | None = None
    """Checkpoint from whose weights a new run starts."""

    @property
    def root(self) -> Path:
        """Folder of all runs."""
        return Path(self.options.trainer.default_root_dir or LOGS)

    def add_own_arguments(self, parser: LightningArgumentParser) -> None:
        path = "Checkpoint to resume from: its path, or last for the newest good one of this run, if any."
        parser.add_argument("--ckpt_path", type=str | None, help=path)
        init = "Checkpoint from whose weights and tokenizer to start a new run, at step 0."
        parser.add_argument("--init_from", type=str | None, help=init)
        parser.add_argument("--name", type=str, default="run", help="Name of the run, which is written to logs/NAME.")
        allow = "Allow seed, data, document mask and context length to differ from the checkpoint's."
        parser.add_argument("--allow_changes", type=bool, default=False, help=allow)
        for kind, group in ((CheckpointCallback, "checkpoint"), (Console, "console"), (Samples, "samples")):
            parser.add_class_arguments(kind, group)

    def find_checkpoint(self) -> Checkpoint | None:
        """The checkpoint that --ckpt_path names; for `last`, the newest good one, and the run resumes in its folder."""
        path, name = self.options.ckpt_path, self.options.name
        if path != "last":
            checkpoint = read_checkpoint(path) if path and Path(path).is_file() else super().find_checkpoint()
            if checkpoint is not None and "loops" not in checkpoint.content:
                raise ValueError(f"{checkpoint.path} has only weights; start a new run from them with --init_from")
            if checkpoint is not None:
                report(f"continuing {checkpoint.path} as a new version of {self.root / name}")
            return checkpoint
        newest = next(iter(versions(self.root / name)), None)
        checkpoint, problems = (None, []) if newest is None else newest_good_checkpoint(newest / "checkpoints")
        for problem in problems:
            report(f"{problem}; skipping it")
        if checkpoint is None:
            report(f"no checkpoint in {newest or self.root / name} yet; starting a new run")
            return None
        report(f"resuming from {checkpoint.path}")
        self.resumed = newest
        return checkpoint

    def initial_shape(self) -> dict[str, Any] | None:
        """Read the checkpoint that --init_from names."""
        if self.options.init_from is None:
            return None
        self.start = read_checkpoint(chosen_checkpoint(self.options.init_from, None))
        shape: dict[str, Any] = self.start.model["net"]
        return shape

    def before_instantiate_classes(self) -> None:
        """Also check that the model can start from the checkpoint of --init_from."""
        super().before_instantiate_classes()
        if self.start is not None:
            here = TransformerConfig(**self.options.model.net.as_dict())
            if problems := shape_problems(TransformerConfig(**self.start.model["net"]), here):
                raise ValueError("\n".join(problems))

    def after_instantiate_classes(self) -> None:
        """Also load the weights and the tokenizer of --init_from."""
        super().after_instantiate_classes()
        if self.start is None:
            return
        report(f"starting from the weights of {self.start.path}")
        load_weights(self.model.net, self.start.weights)
        tokenizer = self.start.tokenizer
        if self.options.data.tokenizer is None:
            self.datamodule.tokenizer = tokenizer
        elif tokenizer is not None:
            self.datamodule.tokenizer = self.datamodule.corpus.tokenizer()
            if problems := tokenizer_problems(tokenizer, self.datamodule.tokenizer):
                raise ValueError("\n".join(problems))

    def callbacks(self) -> list[Callback]:
        folder = RunFolder(
            self.root / self.options.name,
            self.own_parser.dump(self.options, skip_none=False),
            self.resumed,
            0 if self.checkpoint is None else self.checkpoint.step,
            tensorboard=self.options.trainer.logger in (None, True),
        )
        callbacks: list[Callback] = [folder, LossSpikes(), self.config_init["fit"].samples, LossCurves(), Throughput()]
        if self.options.trainer.enable_checkpointing is not False:
            callbacks.append(self.config_init["fit"].checkpoint)
        return callbacks

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer with the user's loggers; by default, RunFolder sets up TensorBoard."""
        if self.options.trainer.logger in (None, True):
            kwargs["logger"] = False
        return super().instantiate_trainer(**kwargs)


class EvaluateCLI(TrainerCLI):
    """`lit-lm validate` and `lit-lm test`."""

    needs_checkpoint = True

    def add_own_arguments(self, parser: LightningArgumentParser) -> None:
        super().add_own_arguments(parser)
        parser.add_argument("--allow_changes", type=bool, default=False, help=SUPPRESS)
        self.accept(parser, init_from=str | None, checkpoint=dict | None, console=dict | None, samples=dict | None)

    def callbacks(self) -> list[Callback]:
        if self.command == "validate" or self.checkpoint is None:
            return []
        digests = self.checkpoint.digests.get("train", "").split()
        cache = cache_folder(self.options.data.cache_dir)
        return [SampleMetrics(run_folder(self.checkpoint.path), self.checkpoint.step, digests, cache)]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer without a logger: only `fit` logs."""
        return super().instantiate_trainer(logger=False, **kwargs)
