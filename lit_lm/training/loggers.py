"""Operations for which Lightning's loggers have no common method."""

from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams


def log_text(trainer: Trainer, name: str, text: str) -> None:
    """Log a text at the current step to the loggers that support text: TensorBoard, Weights & Biases."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(name, text, trainer.global_step)
        elif hasattr(logger, "log_text"):
            logger.log_text(name, columns=["step", "text"], data=[[trainer.global_step, text]])


def log_hyperparameters(trainer: Trainer, values: Mapping[str, Any]) -> None:
    """Show hyperparameters, beside the run's val/loss, in TensorBoard's HPARAMS tab."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            for summary in hparams(dict(_flattened(values)), {"val/loss": 0.0}):  # type: ignore[no-untyped-call]
                logger.experiment.file_writer.add_summary(summary)


def _flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, bool | int | float) else str(value)


def flush(trainer: Trainer) -> None:
    """Write all logged values to disk: a checkpoint at step s guarantees the curves up to s."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()
        logger.save()
