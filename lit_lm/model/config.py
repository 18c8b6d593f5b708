"""The shape of a Transformer, and what is wrong with one."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

Norm = Literal["rmsnorm", "layernorm"]
MLP = Literal["swiglu", "gelu", "gelu_erf"]
Positions = Literal["rope", "learned"]

MAX_SIZE, MAX_LAYERS = 2**30, 10_000
"""Limits beyond every machine, so that products of sizes fit into 64 bits."""


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of a Transformer.

    Raises:
        ValueError: listing all invalid values, one per line.
    """

    vocab_size: int = 10_000
    """Number of token ids; also the size to train the tokenizer to."""
    context_length: int = 256
    """Maximum number of tokens that the model sees at once."""
    d_model: int = 512
    """Width of the residual stream."""
    num_layers: int = 4
    """Number of blocks."""
    num_heads: int = 16
    """Query heads."""
    num_kv_heads: int | None = None
    """Key/value heads, each serving num_heads / num_kv_heads query heads; null: num_heads."""
    head_dim: int | None = None
    """Size of each head; null: d_model / num_heads."""
    d_ff: int | None = None
    """Inner width of the feed-forward; null: 8/3 d_model, up to a multiple of 64, for swiglu, else 4 d_model."""
    norm: Norm = "rmsnorm"
    """Normalization before attention, before the feed-forward, and before the head."""
    mlp: MLP = "swiglu"
    """Feed-forward: gated with three matrices (Llama), or plain with two (gelu: GPT-2; gelu_erf: nanoGPT)."""
    positions: Positions = "rope"
    """Rotate queries and keys (Llama) or add a learned vector for each position (GPT-2)."""
    rope_theta: float = 10_000.0
    """Base of the rotary wavelengths; larger for longer contexts."""
    bias: bool = False
    """Biases in all projections and layernorms, but not in the head."""
    qkv_bias: bool | None = None
    """Biases in the query, key and value projections; null: the value of `bias`."""
    qk_norm: bool = False
    """RMSNorm over the head size for queries and keys, before the rotation (Qwen3): bounds the attention scores."""
    dropout: float = 0.0
    """Fraction of activations set to zero in training: after the embedding, in attention, after each sublayer."""
    zero_init: bool = False
    """Initialize o_proj and down_proj with zeros, so that every block starts as the identity (Zhang et al. 2019)."""
    tie_embeddings: bool = False
    """Share the embedding's weights with the head."""
    norm_eps: float = 1e-5
    """Added to the variance in the norms."""

    def __post_init__(self) -> None:
        if problems := self._problems():
            raise ValueError("\n".join(problems))

    @property
    def head_size(self) -> int:
        return self.d_model // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def kv_heads(self) -> int:
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def feed_forward_size(self) -> int:
        if self.d_ff is not None:
            return self.d_ff
        return 64 * math.ceil(self.d_model * 8 / 3 / 64) if self.mlp == "swiglu" else 4 * self.d_model

    def _problems(self) -> list[str]:
        problems = []
        sizes = (
            "vocab_size",
            "context_length",
            "d_model",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "d_ff",
        )
        for name in sizes:
            value, most = getattr(self, name), MAX_LAYERS if name == "num_layers" else MAX_SIZE
            if value is not None and not 1 <= value <= most:
                problems.append(f"{name} is {value}; it must be between 1 and {most:,}")
        if not problems:
            problems = self._head_problems()
        for name, choices in (("norm", Norm), ("mlp", MLP), ("positions", Positions)):
            if getattr(self, name) not in get_args(choices):
                problems.append(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(get_args(choices))}")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout is {self.dropout}; it must be at least 0 and less than 1")
        for name in ("rope_theta", "norm_eps"):
            if not 0 < getattr(self, name) < math.inf:
                problems.append(f"{name} is {getattr(self, name)}; it must be more than 0")
        return problems

    def _head_problems(self) -> list[str]:
        problems = []
        if self.head_dim is None and self.d_model % self.num_heads:
            problems.append(f"d_model {self.d_model} is not divisible by num_heads {self.num_heads}; or set head_dim")
        elif self.positions == "rope" and self.head_size % 2:
            source = f"d_model {self.d_model} / num_heads {self.num_heads}" if self.head_dim is None else "head_dim"
            problems.append(f"{source} is a head size of {self.head_size}; positions rope needs an even head size")
        if self.num_heads % self.kv_heads:
            problems.append(f"num_heads {self.num_heads} is not divisible by num_kv_heads {self.kv_heads}")
        return problems


def division_problems(config: TransformerConfig, size: int, number: int) -> list[str]:
    """Why `number` processes in tensor-parallel groups of `size` cannot train a model; empty if they can."""
    counts = {
        "num_heads": config.num_heads,
        "num_kv_heads": config.kv_heads,
        "d_ff": config.feed_forward_size,
        "vocab_size": config.vocab_size,
    }
    problems = [
        f"model.net.{name} is {count:,}, which tensor_parallel_size {size} does not divide; use a multiple of {size}, "
        f"such as {-(-count // size) * size:,}, or another tensor_parallel_size"
        for name, count in counts.items()
        if count % size
    ]
    if number % size:
        problems.append(
            f"tensor_parallel_size is {size}, which does not divide the number of processes, {number}; pass "
            f"--trainer.devices {size}, or another multiple"
        )
    return problems
