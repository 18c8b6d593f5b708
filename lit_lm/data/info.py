"""What training may know of the data, whatever data module it comes from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lit_lm.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextSize:
    """Size of the text of a validation source."""

    tokens: int
    bytes: int
    """UTF-8 bytes, without end-of-text tokens."""
    characters: int
    """Unicode code points."""


@dataclass(frozen=True)
class DataInfo:
    """Facts about the data of a run, all of them optional: a data module offers them as its attribute `data_info`."""

    tokens_per_step: int | None = None
    """Tokens per optimizer step, over all devices; None: counted from the batches."""
    batch_description: str = ""
    """How a step divides into sequences and micro-batches, for the first line of a run."""
    tokenizer: Tokenizer | None = None
    """Goes into checkpoints; document masks and samples need it."""
    validation: Mapping[str, TextSize] = field(default_factory=dict)
    """The validation sources in the order of their loaders: bits per byte follow from their sizes."""
    windows_of_step: Callable[[int], list[int]] | None = None
    """The windows that optimizer step s (from 1) reads, to name them when its loss is not finite."""
    starts_at_step: bool = False
    """Whether the training loader starts at the Trainer's present step and makes the rest of the run one epoch."""
