"""Facts about the data that training uses, from any data module."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from lit_lm.model.config import TransformerConfig
from lit_lm.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextSize:
    """Size of a validation source."""

    tokens: int
    bytes: int
    """UTF-8 bytes, without end-of-text tokens."""
    characters: int
    """Unicode code points."""


@dataclass(frozen=True)
class DataInfo:
    """Facts about the data of a run, all optional. A data module provides them as its attribute `data_info`."""

    tokens_per_step: int | None = None
    """Tokens per optimizer step, over all devices; None: count the tokens of the batches."""
    steps_per_epoch: Fraction | None = None
    """Steps of an epoch, which reads as many windows as there are; the last one may belong to two epochs. None: no
    epochs.
    """
    context_length: int | None = None
    """Tokens per window, which must be the model's context length; None: not checked."""
    batch_description: str = ""
    """How a step is divided into sequences and micro-batches, shown when a run starts."""
    tokenizer: Tokenizer | None = None
    """Stored in checkpoints; required for document masks and samples."""
    validation: Mapping[str, TextSize] = field(default_factory=dict)
    """Sizes of the validation sources, in the order of their loaders; required for bits per byte."""
    windows_of_step: Callable[[int], list[int]] | None = None
    """Returns the windows of an optimizer step (from 1), which are reported when its loss is not finite."""
    starts_at_step: bool = False
    """Whether the training loader starts at the Trainer's current step and yields the rest of the run as one epoch."""

    def describe_windows(self, step: int) -> str:
        """The windows that a step read, to append to a message; empty if the data module does not report them."""
        return "" if self.windows_of_step is None else f"; its windows are {self.windows_of_step(step)}"

    def check_fits(self, config: TransformerConfig) -> None:
        """Check that a model can train on the data.

        Raises:
            ValueError: if it has another context length, or a smaller vocabulary than the tokenizer.
        """
        if self.context_length not in (None, config.context_length):
            raise ValueError(
                f"the data has windows of {self.context_length} tokens, but the model a context_length of "
                f"{config.context_length}; use the same for both"
            )
        if self.tokenizer is not None and self.tokenizer.vocab_size > config.vocab_size:
            raise ValueError(
                f"the data's tokenizer has {self.tokenizer.vocab_size} tokens, but the model a vocab_size of "
                f"{config.vocab_size}; use at least that of the tokenizer"
            )
