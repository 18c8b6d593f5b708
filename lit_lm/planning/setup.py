"""How a model is trained, as far as memory and time depend on it."""

from dataclasses import dataclass, replace
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
    """Sequences per device, or tensor-parallel group, and forward pass."""
    micro_batches: int = 1
    """Forward passes per device and optimizer step."""
    tensor_parallel: int = 1
    """Devices of a tensor-parallel group, which compute each sequence together."""
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
        """Tokens per device, or tensor-parallel group, and forward pass."""
        return self.rows * self.net.context_length

    @property
    def part(self) -> "Setup":
        """What a device of a tensor-parallel group computes: its heads, neurons and rows of the vocabulary."""
        net, size = self.net, self.tensor_parallel
        divided = replace(
            net,
            vocab_size=net.vocab_size // size,
            num_heads=net.num_heads // size,
            num_kv_heads=net.kv_heads // size,
            head_dim=net.head_size,
            d_ff=net.feed_forward_size // size,
        )
        return replace(self, net=divided, tensor_parallel=1)

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(parameters_by_part(self.net).values())
