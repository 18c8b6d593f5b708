"""The run's folder."""

from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lit_lm.files import write_text
from lit_lm.runs import new_version
from lit_lm.training.loggers import log_hyperparameters
from lit_lm.training.module import LitLM
from lit_lm.training.processes import check_same_start, watch_connections


class RunFolder(Callback):
    """Creates the run's folder, or reuses it when the run resumes, and writes the config to it.

    A lock prevents a second process from training in the folder.
    """

    def __init__(
        self, run: Path, config: str, resumed: Path | None = None, step: int = 0, *, tensorboard: bool
    ) -> None:
        """
        Args:
            run: Folder of all versions of the run.
            config: Text of config.yaml.
            resumed: Version to resume; None: create a new one.
            step: Step at which the run resumes; TensorBoard drops the values of later steps.
            tensorboard: Whether to log to TensorBoard in the run's folder.
        """
        self.run, self.config, self.resumed, self.step, self.tensorboard = run, config, resumed, step, tensorboard
        self._lock: FileLock | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Create and lock the folder, and write the config.

        Raises:
            ValueError: if another process is training in the folder, or a process of this run starts from another
                checkpoint.
        """
        assert isinstance(pl_module, LitLM)
        start = "the beginning" if self.step == 0 else f"step {self.step}"
        check_same_start(trainer, start if self.resumed is None else f"{start} of {self.resumed}")
        folder = None
        if trainer.is_global_zero:
            folder = self.resumed or new_version(self.run)
            self._lock = FileLock(folder / ".lock")
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                self._lock = None
                raise ValueError(f"another process is training in {folder}; wait for it or change --name") from None
            write_text(folder / "config.yaml", self.config)
        pl_module.run.folder = folder = trainer.strategy.broadcast(folder)
        assert folder is not None
        if self.tensorboard:
            resumed: dict[str, Any] = {} if self.resumed is None else {"purge_step": self.step + 1}
            trainer.loggers = [
                TensorBoardLogger(
                    self.run.parent, name=self.run.name, version=folder.name, default_hp_metric=False, **resumed
                )
            ]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LitLM)
        if trainer.num_nodes > 1:
            watch_connections()
        if trainer.is_global_zero:
            log_hyperparameters(trainer, pl_module.plain_hyperparameters())

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None
