"""Parameters and FLOPs against torch's own counter, bits per byte and perplexity against values by hand."""

import math
from itertools import product
from typing import Any, get_args

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lit_lm.model.config import MLP, Norm, Positions, TransformerConfig
from lit_lm.model.cost import (
    cache_memory,
    flops_per_token,
    hidden_matrix_parameters,
    num_parameters,
    parameters_by_part,
    training_memory,
)
from lit_lm.model.layers import LayerNorm, RMSNorm
from lit_lm.model.losses import bits_per_byte, perplexity
from lit_lm.model.transformer import Attention, FeedForward, KVCache, Transformer

VARIANTS: list[dict[str, Any]] = [
    {},
    {"num_kv_heads": 2, "num_layers": 3},
    {"head_dim": 12},
    {"tie_embeddings": True},
    {"norm": "layernorm", "mlp": "gelu", "positions": "learned", "bias": True, "tie_embeddings": True},
]


def make(changes: dict[str, Any]) -> Transformer:
    sizes = {"vocab_size": 40, "context_length": 16, "d_model": 32, "num_layers": 2, "num_heads": 4}
    return Transformer(TransformerConfig(**{**sizes, **changes}))


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_flops_per_token_match_the_counter_of_torch(changes: dict[str, Any]) -> None:
    """torch counts all matrix products, including those of attention, but no lookups, and ignores causality."""
    model = make(changes).eval()  # in training, attention may be a function that torch does not count
    ids = torch.randint(40, (3, 16))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(ids).sum().backward()
    assert flops_per_token(model.config) * ids.numel() == counter.get_total_flops()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # embedding and head 40 * 32, block 4 * 32 * 32 + 3 * 32 * 128, norms 32
        ({}, 2 * 40 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 128 + 2 * 32) + 32),
        ({"tie_embeddings": True}, 40 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 128 + 2 * 32) + 32),
        ({"num_kv_heads": 1}, 2 * 40 * 32 + 2 * (2 * 32 * 32 + 2 * 8 * 32 + 3 * 32 * 128 + 2 * 32) + 32),
    ],
    ids=str,
)
def test_num_parameters_counts_each_weight_once(changes: dict[str, Any], expected: int) -> None:
    assert num_parameters(make(changes)) == expected


LITERALS: list[dict[str, Any]] = [
    *(
        {"norm": norm, "mlp": mlp, "positions": positions, "bias": bias}
        for norm, mlp, positions, bias in product(get_args(Norm), get_args(MLP), get_args(Positions), (False, True))
    ),
    {"qkv_bias": True, "num_kv_heads": 2},
    {"bias": True, "qkv_bias": False, "qk_norm": True, "head_dim": 12},
    {"tie_embeddings": True},
]


@pytest.mark.parametrize("changes", LITERALS, ids=str)
def test_the_parts_have_the_parameters_of_a_real_model(changes: dict[str, Any]) -> None:
    model = make(changes)
    norms = [
        module
        for name, module in model.named_modules()
        if isinstance(module, RMSNorm | LayerNorm) and "attention." not in name
    ]
    attentions, mlps = (
        [module for module in model.modules() if isinstance(module, kind)] for kind in (Attention, FeedForward)
    )
    embeddings = [module for module in (model.embedding, model.position_embedding) if module is not None]
    parts = {"embedding": embeddings, "attention": attentions, "feed-forward": mlps, "norms": norms}
    count = {name: sum(p.numel() for layer in layers for p in layer.parameters()) for name, layers in parts.items()}
    count["head"] = 0 if model.config.tie_embeddings else model.head.weight.numel()
    assert parameters_by_part(model.config) == count
    assert sum(count.values()) == num_parameters(model)
    assert hidden_matrix_parameters(model.config) == sum(matrix.numel() for matrix in model.hidden_matrices())


@pytest.mark.parametrize(
    ("loss", "bytes_per_token", "bits"),
    [
        (math.log(256), 1.0, 8.0),  # every byte equally likely
        (math.log(256), 4.0, 2.0),
        (math.log(2), 1.0, 1.0),
        (0.0, 3.0, 0.0),
    ],
)
def test_bits_per_byte_by_hand(loss: float, bytes_per_token: float, bits: float) -> None:
    assert bits_per_byte(loss, bytes_per_token) == pytest.approx(bits)


@pytest.mark.parametrize(
    ("loss", "expected"), [(0.0, 1.0), (math.log(50), 50.0), (699.0, math.exp(699)), (1e4, math.inf)]
)
def test_perplexity_is_the_exponential_of_the_loss_or_infinite(loss: float, expected: float) -> None:
    assert perplexity(loss) == pytest.approx(expected)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("recompute", [False, True])
def test_training_needs_at_least_the_estimated_memory(changes: dict[str, Any], recompute: bool) -> None:
    """Weights, gradients and an average in float32, and the tensors that autograd saves in bfloat16."""
    model, ids = make(changes), torch.randint(40, (64, 16))
    model.recompute_blocks = recompute
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        features = model.features(ids)
    measured = sum(saved.values())
    assert features.requires_grad
    estimate = training_memory(model.config, ids.numel(), recompute=recompute)
    estimate -= 12 * num_parameters(model) + model.config.num_layers * 20_000
    assert 0.2 * measured < estimate <= measured


def test_the_cache_needs_the_estimated_memory() -> None:
    model = make({"num_kv_heads": 2})
    cache = KVCache(model.config, 3, torch.device("cpu"), torch.float32)
    tensors = [value for value in vars(cache).values() if isinstance(value, torch.Tensor)]
    assert cache_memory(model.config, 3) == sum(tensor.nbytes for tensor in tensors) + 4 * 3 * 40
