"""The architectures of the library `transformers` that compute the same as a Transformer.

Exported are Llama and, with norms of queries and keys, Qwen3, and GPT-2; Mistral and Qwen2 are imported, too. `layout`
says which tensors of ours make each of theirs.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lit_lm.checkpoint_schema import misfits, quoted
from lit_lm.model.config import MLP, TransformerConfig
from lit_lm.model.cost import skeleton

Architecture = Literal["llama", "qwen2", "qwen3", "gpt2"]
Imported = Literal["llama", "mistral", "qwen2", "qwen3", "gpt2"]
"""Values of model_type."""
MAX_SHOWN = 5
CLASSES: dict[Architecture, str] = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
LIKE_LLAMA = {
    "embedding": "model.embed_tokens",
    "blocks": "model.layers",
    "attention_norm": "input_layernorm",
    "attention": "self_attn",
    "feed_forward_norm": "post_attention_layernorm",
    "feed_forward": "mlp",
    "head": "lm_head",
}
"""Parts of the names of tensors: ours, theirs."""
LIKE_GPT2 = {
    "embedding": "transformer.wte",
    "position_embedding": "transformer.wpe",
    "blocks": "transformer.h",
    "attention_norm": "ln_1",
    "attention": "attn",
    "feed_forward_norm": "ln_2",
    "feed_forward": "mlp",
    "o_proj": "c_proj",
    "up_proj": "c_fc",
    "down_proj": "c_proj",
    "head": "lm_head",
}

GELUS: dict[str, MLP] = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_erf"}
"""Our names of GPT-2's activation functions."""

SIZE = range(1, 2**63)
LLAMA = {
    "hidden_size": SIZE,
    "intermediate_size": SIZE,
    "num_hidden_layers": SIZE,
    "num_attention_heads": SIZE,
    "num_key_value_heads?": SIZE,
    "head_dim?": SIZE,
    "max_position_embeddings": SIZE,
    "vocab_size": SIZE,
    "rms_norm_eps?": float,
    "rope_theta?": int | float,
    "rope_parameters?": {"rope_type?": str, "rope_theta?": int | float},
    "rope_scaling?": {"rope_type?": str, "type?": str},
    "attention_bias?": bool,
    "mlp_bias?": bool,
    "tie_word_embeddings?": bool,
}
"""Schema of a config.json like Llama's without its nulls, in the terms of `checkpoint_schema.misfits`."""
GPT2 = {
    "n_embd": SIZE,
    "n_layer": SIZE,
    "n_head": SIZE,
    "n_inner?": SIZE,
    "n_positions?": SIZE,
    "vocab_size": SIZE,
    "layer_norm_epsilon?": float,
    "tie_word_embeddings?": bool,
}
"""Schema of a config.json like GPT-2's without its nulls."""


@dataclass(frozen=True)
class Part:
    """How a tensor of theirs is made: some of ours, one below the other, or their transpose."""

    ours: tuple[str, ...]
    transposed: bool = False


def architecture_of(config: TransformerConfig) -> Architecture:
    """The architecture that computes what a Transformer of this shape computes.

    Raises:
        ValueError: if there is none; names the options.
    """
    kind = (config.norm, config.mlp, config.positions)
    if kind in (("layernorm", "gelu", "learned"), ("layernorm", "gelu_erf", "learned")):
        problems = {
            "num_kv_heads": config.kv_heads != config.num_heads,
            "head_dim": config.num_heads * config.head_size != config.d_model,
            "qk_norm": config.qk_norm,
        }
        found: Architecture = "gpt2"
    elif kind == ("rmsnorm", "swiglu", "rope"):
        found = "qwen3" if config.qk_norm else "llama"
        problems = {"qk_norm with bias": config.qk_norm and config.bias}
    else:
        raise ValueError(
            f"no Hugging Face architecture has norm {config.norm} with mlp {config.mlp} and positions "
            f"{config.positions}; it must be rmsnorm, swiglu, rope (Llama) or layernorm, gelu, learned (GPT-2)"
        )
    if refused := [name for name, is_so in problems.items() if is_so]:
        raise ValueError(f"{CLASSES[found]} cannot express {' or '.join(refused)}; train without")
    return found


def layout(config: TransformerConfig, architecture: Architecture) -> dict[str, Part]:
    """For each tensor of a folder: the tensors of ours that it is made of."""
    names = list(skeleton(config).state_dict())
    if config.tie_embeddings:
        names.remove("head.weight")
    if architecture != "gpt2":
        if _attention_bias(config) and architecture != "qwen2":  # theirs biases all four projections, or none
            weights = [name for name in names if re.search(r"[qkvo]_proj\.weight", name)]
            names = list(dict.fromkeys([*names, *(name.replace(".weight", ".bias") for name in weights)]))
        return {_renamed(name, LIKE_LLAMA, "model.norm"): Part((name,)) for name in names}
    if not config.bias:  # theirs always has biases
        names += [name.replace(".weight", ".bias") for name in names if "norm" in name or "_proj" in name]
    parts: dict[str, Part] = {}
    for name in names:
        if re.search(r"[qkv]_proj", name):
            three = tuple(re.sub(r"[qkv]_proj", f"{letter}_proj", name) for letter in "qkv")
            parts[_renamed(re.sub(r"[qkv]_proj", "c_attn", name), LIKE_GPT2, "")] = Part(three, name.endswith("weight"))
        else:
            transposed = "_proj" in name and name.endswith("weight")
            parts[_renamed(name, LIKE_GPT2, "transformer.ln_f")] = Part((name,), transposed)
    return parts


def _attention_bias(config: TransformerConfig) -> bool:
    return config.bias or bool(config.qkv_bias)


def to_theirs(part: Part, weights: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """A tensor of theirs."""
    ours = [weight_of(name, weights).to(dtype) for name in part.ours]
    tensor = ours[0] if len(ours) == 1 else torch.cat(ours)
    return (tensor.T if part.transposed else tensor).contiguous()


def weight_of(name: str, weights: Mapping[str, Tensor]) -> Tensor:
    """A tensor of ours; a bias that we do not have is zero."""
    if name in weights:
        return weights[name]
    return torch.zeros(len(weights[name.replace(".bias", ".weight")]))


def to_config(config: TransformerConfig, architecture: Architecture, end_id: int, dtype: str) -> dict[str, Any]:
    """The content of config.json, for transformers 4 and 5."""
    common = {
        "architectures": [CLASSES[architecture]],
        "model_type": architecture,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": end_id,
        "eos_token_id": end_id,
        "pad_token_id": end_id,
        "dtype": dtype,
        "torch_dtype": dtype,  # its name in transformers 4
    }
    if architecture == "gpt2":
        return common | {
            "n_positions": config.context_length,
            "n_ctx": config.context_length,  # read by converters
            "n_embd": config.d_model,
            "n_layer": config.num_layers,
            "n_head": config.num_heads,
            "n_inner": config.feed_forward_size,
            "activation_function": "gelu" if config.mlp == "gelu_erf" else "gelu_new",
            "layer_norm_epsilon": config.norm_eps,
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout),
        }
    theirs = common | {
        "max_position_embeddings": config.context_length,
        "hidden_size": config.d_model,
        "intermediate_size": config.feed_forward_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rope_theta": config.rope_theta,  # where transformers 4 and converters read it
        "attention_dropout": 0.0,
    }
    theirs["attention_bias"] = _attention_bias(config)
    return theirs | ({"mlp_bias": config.bias} if architecture == "llama" else {})


def from_config(content: Mapping[str, Any]) -> TransformerConfig:
    """The shape of a Transformer from the content of a config.json.

    Raises:
        ValueError: if the architecture is unknown or has parts that a Transformer lacks; names them.
    """
    kind, known = content.get("model_type"), get_args(Imported)
    if kind not in known:
        raise ValueError(f"model_type is {quoted(kind)}; it must be one of {', '.join(known)}")
    content = {name: value for name, value in content.items() if value is not None}
    if found := list(misfits(content, GPT2 if kind == "gpt2" else LLAMA)):
        raise ValueError(f"config.json is incomplete or damaged: {'; '.join(found[:MAX_SHOWN])}")
    return _gpt2(content) if kind == "gpt2" else _like_llama(content)


def _like_llama(content: Mapping[str, Any]) -> TransformerConfig:
    kind = content["model_type"]
    rope = content.get("rope_parameters") or content.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    head_size = content.get("head_dim") or (128 if kind == "qwen3" else None)
    heads = content["num_attention_heads"]
    sliding = kind != "llama" and content.get("sliding_window") and content.get("use_sliding_window", kind == "mistral")
    _refuse(
        content,
        {
            f"RoPE scaling {rope_type}": rope_type != "default",
            f"hidden_act {content.get('hidden_act')}": content.get("hidden_act", "silu") != "silu",
            "sliding_window": sliding,
            "mlp_bias without attention_bias": content.get("mlp_bias", False)
            and not content.get("attention_bias", False),
        },
    )
    return TransformerConfig(
        vocab_size=content["vocab_size"],
        context_length=content["max_position_embeddings"],
        d_model=content["hidden_size"],
        num_layers=content["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=content.get("num_key_value_heads") or heads,
        head_dim=None if head_size == content["hidden_size"] / heads else head_size,
        d_ff=content["intermediate_size"],
        rope_theta=float(rope.get("rope_theta") or content.get("rope_theta") or 10_000.0),
        norm_eps=content.get("rms_norm_eps", 1e-6),
        bias=kind == "llama" and content.get("mlp_bias", False),
        qkv_bias=True if kind == "qwen2" or content.get("attention_bias", False) else None,
        qk_norm=kind == "qwen3",
        tie_embeddings=content.get("tie_word_embeddings", False),
    )


def _gpt2(content: Mapping[str, Any]) -> TransformerConfig:
    activation = str(content.get("activation_function", "gelu_new"))
    _refuse(
        content,
        {
            f"activation_function {activation}": activation not in GELUS,
            "scale_attn_by_inverse_layer_idx": content.get("scale_attn_by_inverse_layer_idx", False),
            "add_cross_attention": content.get("add_cross_attention", False),
            "scale_attn_weights false": not content.get("scale_attn_weights", True),
        },
    )
    return TransformerConfig(
        vocab_size=content["vocab_size"],
        context_length=content.get("n_positions", 1024),
        d_model=content["n_embd"],
        num_layers=content["n_layer"],
        num_heads=content["n_head"],
        d_ff=content.get("n_inner") or 4 * content["n_embd"],
        norm="layernorm",
        mlp=GELUS[activation],
        positions="learned",
        norm_eps=content.get("layer_norm_epsilon", 1e-5),
        bias=True,
        tie_embeddings=content.get("tie_word_embeddings", True),
    )


def _refuse(content: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    if found := [name for name, is_there in parts.items() if is_there]:
        raise ValueError(f"this {content['model_type']} model has {' and '.join(found)}, which a Transformer lacks")


def _renamed(name: str, table: Mapping[str, str], last_norm: str) -> str:
    """The name of a tensor with each part replaced; `last_norm` stands for the norm before the head."""
    if name.startswith("norm."):
        return name.replace("norm", last_norm, 1)
    return ".".join(table.get(part, part) for part in name.split("."))
