"""Small Transformers, and weights of models of the library `transformers` under the names of lit_lm."""

from itertools import product
from typing import Any, get_args

import torch
from torch import Tensor, nn

from lit_lm.model.config import MLP, Norm, Positions, TransformerConfig
from lit_lm.model.transformer import Transformer

SMALL = dict[str, Any](vocab_size=40, context_length=16, d_model=32, num_layers=2, num_heads=4)


GPT2 = dict[str, Any](norm="layernorm", mlp="gelu", positions="learned", bias=True, tie_embeddings=True)


KINDS: dict[str, dict[str, Any]] = {
    " ".join(kind): dict(zip(("norm", "mlp", "positions"), kind, strict=True))
    for kind in product(get_args(Norm), get_args(MLP), get_args(Positions))
}
"""Every combination of the choices in the config; a new choice is included automatically."""
VARIANTS: dict[str, dict[str, Any]] = KINDS | {
    "grouped heads": {"num_kv_heads": 2},
    "one kv head": {"num_kv_heads": 1},
    "qkv bias, odd sizes": {"num_kv_heads": 2, "qkv_bias": True, "tie_embeddings": True, "vocab_size": 43, "d_ff": 35},
    "qk norm": {"qk_norm": True, "num_kv_heads": 2},
    "wide heads": {"head_dim": 12, "num_kv_heads": 2},
    "gpt2": GPT2,
}


def spread(model: nn.Module) -> nn.Module:
    """Perturb all parameters, so that no norm weight is one and no bias is zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def make(**changes: Any) -> Transformer:
    model = spread(Transformer(TransformerConfig(**{**SMALL, **changes})))
    assert isinstance(model, Transformer)
    return model


def from_llama(theirs: nn.Module) -> dict[str, Tensor]:
    """Weights of a Llama or Qwen model of `transformers` under the names of lit_lm."""
    renamed = {
        "model.embed_tokens": "embedding",
        "model.layers": "blocks",
        "model.norm": "norm",
        "self_attn": "attention",
        "mlp": "feed_forward",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "feed_forward_norm",
        "lm_head": "head",
    }
    weights = {}
    for name, weight in theirs.state_dict().items():
        for old, new in renamed.items():
            name = name.replace(old, new)
        weights[name] = weight
    return weights


def from_gpt2(theirs: nn.Module) -> dict[str, Tensor]:
    """Weights of a GPT-2 model of `transformers` under the names of lit_lm, transposed, with q, k, v separated."""
    renamed = {
        "transformer.wte": "embedding",
        "transformer.wpe": "position_embedding",
        "transformer.h": "blocks",
        "transformer.ln_f": "norm",
        "attn.c_proj": "attention.o_proj",
        "mlp.c_fc": "feed_forward.up_proj",
        "mlp.c_proj": "feed_forward.down_proj",
        "ln_1": "attention_norm",
        "ln_2": "feed_forward_norm",
        "lm_head": "head",
    }
    weights = {}
    for name, weight in theirs.state_dict().items():
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            weight = weight.T
        for old, new in renamed.items():
            name = name.replace(old, new)
        if "c_attn" in name:
            for part, piece in zip("qkv", weight.chunk(3), strict=True):
                weights[name.replace("attn.c_attn", f"attention.{part}_proj")] = piece
        else:
            weights[name] = weight
    return weights
