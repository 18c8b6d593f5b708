"""Texts that a model generates while it trains."""

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_lm.inference.generate import generate
from lit_lm.inference.sampling import SamplingConfig
from lit_lm.training.loggers import log_text
from lit_lm.training.module import LitLM


class Samples(Callback):
    """Logs a text from the model at every validation, with the loggers that take texts."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LitLM)
        tokenizer = pl_module.data_info.tokenizer
        if trainer.state.fn != "fit" or trainer.sanity_checking or not trainer.is_global_zero:
            return
        if tokenizer is None or not trainer.loggers:
            return
        end_id = tokenizer.end_id  # stands before each document; so this is the start of a new one
        seed = pl_module.seed_at("sample story")
        try:
            ((sample,),) = generate(pl_module.net, [[end_id]], SamplingConfig(), seeds=[seed], end_id=end_id)
            text = tokenizer.decode(sample.ids)
        except ValueError as error:  # a diverged model has no text; that is for the loss to show
            text = f"({error})"
        log_text(trainer, "sample", text)
