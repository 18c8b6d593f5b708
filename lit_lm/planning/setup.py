"""How a model is trained, as far as memory and time depend on it."""

from dataclasses import dataclass
from inspect import signature

from lit_lm.model.config import TransformerConfig
from lit_lm.model.cost import parameters_by_part
from lit_lm.optim.muon import Muon


@dataclass(frozen=True)
class Setup:
    """How a model is trained on each device."""

    net: TransformerConfig
    optimizer: str
    """Name of the optimizer's class."""
    rows: int
    """Sequences per device and forward pass."""
    micro_batches: int = 1
    """Forward passes per device and optimizer step."""
    bfloat16: bool = False
    """Whether matrix products are in bfloat16, under autocast."""
    compiled: bool = False
    checkpointing: bool = False
    document_mask: bool = False
    period: int = signature(Muon).parameters["period"].default
    """Muon's option of this name."""
    on_cpu: bool = True

    @property
    def num_tokens(self) -> int:
        """Tokens per device and forward pass."""
        return self.rows * self.net.context_length

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(parameters_by_part(self.net).values())
