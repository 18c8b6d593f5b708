"""What Lightning's loggers have no common method for."""

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger


def log_text(trainer: Trainer, name: str, text: str) -> None:
    """Log a text under the present step, with the loggers that take texts: TensorBoard, Weights & Biases."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(name, text, trainer.global_step)
        elif hasattr(logger, "log_text"):
            logger.log_text(name, columns=["step", "text"], data=[[trainer.global_step, text]])


def flush(trainer: Trainer) -> None:
    """Write to the disk what was logged: a checkpoint at step s promises the curves up to s."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()
        logger.save()
