"""Continue many prompts with a Trainer: a LightningModule and its batches."""

from collections.abc import Sequence

from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader

from lit_lm.inference.continuation import Continuation
from lit_lm.inference.engine import Engine, make_engine
from lit_lm.inference.generate import generate
from lit_lm.inference.prompts import Prompt, PromptBatch, length_batches, prompt_ids
from lit_lm.inference.sampling import SamplingConfig, derive_seed
from lit_lm.inference.text import stop_string_criterion
from lit_lm.inference.weights import WeightDtype
from lit_lm.model.transformer import Transformer
from lit_lm.tokenizer.tokenizer import Tokenizer


class PredictModule(LightningModule):
    """Continues prompts on all devices of a Trainer: `trainer.predict(module)`."""

    def __init__(
        self,
        net: Transformer,
        tokenizer: Tokenizer,
        prompts: Sequence[Prompt],
        sampling: SamplingConfig,
        *,
        weight_dtype: WeightDtype | None = None,
        stop: Sequence[str] = (),
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        """
        Args:
            net: The model.
            tokenizer: The model's tokenizer.
            prompts: Prompts to continue.
            sampling: Sampling controls.
            weight_dtype: Data type of the weights for generation; null: that of trainer.precision.
            stop: Stop strings.
            batch_size: Prompts per batch and device.
            seed: Seed of the continuations; each also depends on the index of its prompt.

        Raises:
            ValueError: if a prompt is too long or not Unicode text, or `batch_size` is less than 1.
        """
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self.net, self.tokenizer, self.prompts, self.sampling = net, tokenizer, prompts, sampling
        self.weight_dtype, self.stop, self.batch_size, self.seed = weight_dtype, tuple(stop), batch_size, seed
        room = None if sampling.sliding_window else sampling.max_new_tokens or 1
        self.ids = prompt_ids(prompts, tokenizer, net.config.context_length, room)
        self.prompts_done = 0
        """Number of prompts, from the first, that are already continued."""
        self._engine: Engine | None = None

    def predict_dataloader(self) -> DataLoader[PromptBatch]:
        """Return this device's share of the remaining prompts, in batches of similar length."""
        world_size = self.trainer.world_size
        batches = length_batches([len(row) for row in self.ids], self.prompts_done, self.batch_size, world_size)
        share = [
            (numbers, [self.ids[n] for n in numbers]) for numbers in batches[self.trainer.global_rank :: world_size]
        ]
        return DataLoader(share, batch_size=None, collate_fn=_unchanged)  # type: ignore[arg-type]

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[list[Continuation]]:
        """Return the continuations of a batch of prompts, each up to the token that completes a stop string."""
        numbers, prompts = batch
        if not prompts:
            return []
        if self._engine is None:  # not earlier: autocast is on here
            self._engine = make_engine(self.net, self.weight_dtype)
        return generate(
            self._engine,
            prompts,
            self.sampling,
            seeds=[self.prompt_seed(number) for number in numbers],
            end_id=self.tokenizer.end_id,
            criterion=stop_string_criterion(self.tokenizer, self.stop),
        )

    def on_predict_end(self) -> None:
        """Drop the engine: weights and precision may change before the next run."""
        self._engine = None

    def prompt_seed(self, number: int) -> int:
        """Return the seed of prompt `number`, independent of its batch and device."""
        return derive_seed(self.seed, "sample", number)


def _unchanged(batch: PromptBatch) -> PromptBatch:
    return batch
