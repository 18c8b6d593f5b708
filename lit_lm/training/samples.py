"""Samples generated during training."""

from dataclasses import replace

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_lm.inference.generate import generate
from lit_lm.inference.prompts import Prompt, prompt_ids
from lit_lm.inference.sampling import SamplingConfig
from lit_lm.inference.text import whole_text
from lit_lm.training.loggers import log_text
from lit_lm.training.module import LitLM


class Samples(Callback):
    """Generates a sample at every validation. Prints its beginning, and logs it to the loggers that support text.

    There are no samples if the model is sharded, because each process holds only a part of it.
    """

    SHOWN_CHARACTERS = 120

    def __init__(self, prompt: str = "", max_new_tokens: int | None = None) -> None:
        """
        Args:
            prompt: Text that the sample at each validation continues; empty: it starts a new text.
            max_new_tokens: Maximum number of new tokens; null: until the context is full.

        Raises:
            ValueError: if `max_new_tokens` is less than 1.
        """
        self.prompt, self.sampling = prompt, replace(SamplingConfig(), max_new_tokens=max_new_tokens)
        self._ids: list[int] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Encode the prompt.

        Raises:
            ValueError: if it does not fit into the context.
        """
        assert isinstance(pl_module, LitLM)
        if pl_module.is_sharded:
            if trainer.is_global_zero:
                print("no samples: the model is sharded", flush=True)
        elif (tokenizer := pl_module.data_info.tokenizer) is not None:
            prompt, room = Prompt(self.prompt, "samples.prompt"), self.sampling.max_new_tokens or 1
            (self._ids,) = prompt_ids([prompt], tokenizer, pl_module.net.config.context_length, room)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LitLM)
        console = trainer.progress_bar_callback
        if trainer.state.fn != "fit" or trainer.sanity_checking or not trainer.is_global_zero:
            return
        if not self._ids or not (trainer.loggers or console):
            return
        text = self._sample(pl_module)
        log_text(trainer, "sample", text)
        if console is not None:
            console.print(f"sample: {_beginning(text, self.SHOWN_CHARACTERS)}")

    def _sample(self, module: LitLM) -> str:
        tokenizer = module.data_info.tokenizer
        assert tokenizer is not None
        end_id, seed = tokenizer.end_id, module.seed_at("sample story")
        try:
            ((sample,),) = generate(module.net, [self._ids], self.sampling, seeds=[seed], end_id=end_id)
        except ValueError as error:  # the model diverged, which the loss shows
            return f"({error})"
        return self.prompt + whole_text(tokenizer, self.prompt, self._ids, seed, sample, ()).continuation


def _beginning(text: str, length: int) -> str:
    """The beginning of a text on one line, without control characters."""
    line = "".join(c if c.isprintable() else " " for c in " ".join(text[: 2 * length].split()))
    return line if len(line) <= length else f"{line[:length]}..."
