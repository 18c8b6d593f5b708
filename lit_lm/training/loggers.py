"""Operations for which Lightning's loggers have no common method."""

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger


def log_text(trainer: Trainer, name: str, text: str) -> None:
    """Log a text at the current step to the loggers that support text: TensorBoard, Weights & Biases."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(name, text, trainer.global_step)
        elif hasattr(logger, "log_text"):
            logger.log_text(name, columns=["step", "text"], data=[[trainer.global_step, text]])


def flush(trainer: Trainer) -> None:
    """Write all logged values to disk: a checkpoint at step s guarantees the curves up to s."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()
        logger.save()
