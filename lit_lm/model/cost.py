"""Parameters, FLOPs and memory of a model."""

from dataclasses import replace

import torch
from torch.nn import Module

from lit_lm.model.config import TransformerConfig
from lit_lm.model.transformer import Block, Transformer

BYTES_PER_BLOCK = 20_000
"""Size of a block's Python objects, apart from its weights."""


def num_parameters(model: Transformer) -> int:
    """Number of parameters; a tied matrix counts once."""
    return sum(p.numel() for p in model.parameters())


def parameters_by_part(config: TransformerConfig) -> dict[str, int]:
    """Number of parameters of embedding, attention, feed-forward, norms and head; a tied head has none.

    Attention includes the norms of queries and keys.
    """
    model = skeleton(replace(config, num_layers=1))
    block = model.blocks[0]
    assert isinstance(block, Block)
    return {
        "embedding": _count(model.embedding, model.position_embedding),
        "attention": config.num_layers * _count(block.attention),
        "feed-forward": config.num_layers * _count(block.feed_forward),
        "norms": config.num_layers * _count(block.attention_norm, block.feed_forward_norm) + _count(model.norm),
        "head": 0 if config.tie_embeddings else _count(model.head),
    }


def _count(*modules: Module | None) -> int:
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())


def hidden_matrix_parameters(config: TransformerConfig) -> int:
    """Number of weights of `Transformer.hidden_matrices`."""
    model = skeleton(replace(config, num_layers=1))
    return config.num_layers * sum(matrix.numel() for matrix in model.hidden_matrices())


def flops_per_token(config: TransformerConfig) -> float:
    """Floating-point operations per training token, forward and backward.

    6 per weight used in a matrix product, plus 12 * num_layers * H * K * context_length for attention (Chowdhery et
    al. 2022, appendix B). An embedding is a lookup and does not count. As is customary, causality is ignored.
    """
    return block_flops_per_token(config) + 6.0 * config.vocab_size * config.d_model


def block_flops_per_token(config: TransformerConfig) -> float:
    """The part of `flops_per_token` of all blocks, without the head."""
    attention = 12.0 * config.num_layers * config.num_heads * config.head_size * config.context_length
    return 6.0 * hidden_matrix_parameters(config) + attention


class _WithoutValues(Transformer):
    def init_weights(self) -> None:
        """Do nothing: on the meta device, the first operation other than torch.empty imports for a second."""


def skeleton(config: TransformerConfig) -> Transformer:
    """The modules of a Transformer, with parameters and buffers that have a shape but no values."""
    with torch.device("meta"):
        model = _WithoutValues(replace(config, positions="learned"))  # RoPE's table would be computed
        if config.positions == "rope":
            model.position_embedding = None
            for name in ("rope_cos", "rope_sin"):
                model.register_buffer(name, torch.empty(config.context_length, config.head_size), persistent=False)
    return model


def training_memory(config: TransformerConfig, num_tokens: int, *, recompute: bool = False) -> int:
    """Bytes of memory that a training step needs at least, for micro-batches of `num_tokens` tokens per device.

    Counts weights, gradients and one average per weight in float32, the modules themselves, and what the blocks keep
    for the backward pass in bfloat16 (with `recompute`, only their inputs).
    """
    layers, parameters = config.num_layers, sum(parameters_by_part(config).values())
    heads = config.num_heads * config.head_size
    kept = config.d_model if recompute else 6 * config.d_model + 2 * heads + 2 * config.feed_forward_size
    return 12 * parameters + layers * BYTES_PER_BLOCK + 2 * layers * kept * num_tokens


def cache_memory(config: TransformerConfig, num_rows: int) -> int:
    """Bytes of the keys and values of `num_rows` full contexts, and of their logits, in float32."""
    keys_and_values = 2 * config.num_layers * config.kv_heads * config.head_size * config.context_length
    return 4 * num_rows * (keys_and_values + config.vocab_size)
