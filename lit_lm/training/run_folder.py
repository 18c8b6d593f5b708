"""The folder of a run: made for it alone, whatever logs there."""

from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lit_lm.files import write_text
from lit_lm.runs import new_version
from lit_lm.training.module import LitLM


class RunFolder(Callback):
    """Makes the run's folder, or takes that of the run that is resumed, and keeps the config in it.

    A lock keeps a second process out of it while the run goes.
    """

    def __init__(
        self, run: Path, config: str, resumed: Path | None = None, step: int = 0, *, tensorboard: bool
    ) -> None:
        """
        Args:
            run: Folder of all versions of the run.
            config: Text of config.yaml.
            resumed: The version that is resumed; None: a new one is made.
            step: Step at which the run resumes: what TensorBoard has of later steps is dropped.
            tensorboard: Log to TensorBoard in the run's folder.
        """
        self.run, self.config, self.resumed, self.step, self.tensorboard = run, config, resumed, step, tensorboard
        self._lock: FileLock | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """
        Raises:
            ValueError: if another process trains in the folder.
        """
        assert isinstance(pl_module, LitLM)
        folder = None
        if trainer.is_global_zero:
            folder = self.resumed or new_version(self.run)
            self._lock = FileLock(folder / ".lock")
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                self._lock = None
                raise ValueError(f"another process trains in {folder}: wait for it, or choose another --name") from None
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

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None
