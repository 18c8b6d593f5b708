"""Samples generated during training."""

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_lm.inference.generate import generate
from lit_lm.inference.sampling import SamplingConfig
from lit_lm.training.loggers import log_text
from lit_lm.training.module import LitLM


class Samples(Callback):
    """Logs a generated sample at every validation, to the loggers that support text."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LitLM)
        tokenizer = pl_module.data_info.tokenizer
        if trainer.state.fn != "fit" or trainer.sanity_checking or not trainer.is_global_zero:
            return
        if tokenizer is None or not trainer.loggers:
            return
        end_id = tokenizer.end_id  # precedes each document, so the sample starts a new one
        seed = pl_module.seed_at("sample story")
        try:
            ((sample,),) = generate(pl_module.net, [[end_id]], SamplingConfig(), seeds=[seed], end_id=end_id)
            text = tokenizer.decode(sample.ids)
        except ValueError as error:  # the model diverged, which the loss shows
            text = f"({error})"
        log_text(trainer, "sample", text)
