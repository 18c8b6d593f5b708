"""Checkpoint folders of LitGPT: lit_model.pth, model_config.yaml and the tokenizer."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_lm.checkpoint import load_data
from lit_lm.checkpoint_schema import misfits
from lit_lm.interop.architectures import MAX_SHOWN, SIZE, Part
from lit_lm.interop.foreign import ForeignModel, assemble, in_file, read_yaml
from lit_lm.model.config import TransformerConfig
from lit_lm.model.cost import skeleton
from lit_lm.tokenizer.tokenizer import Tokenizer

SCHEMA = {
    "block_size": SIZE,
    "n_layer": SIZE,
    "n_embd": SIZE,
    "n_head": SIZE,
    "padded_vocab_size": SIZE,
    "intermediate_size": SIZE,
    "n_query_groups?": SIZE,
    "head_size?": SIZE,
    "norm_eps": float,
    "rope_base": int | float,
    "bias": bool,
    "attn_bias?": bool,
    "norm_qk?": bool,
    "mlp_class_name?": str,
    "norm_class_name?": str,
    "gelu_approximate?": str,
}
"""The values of model_config.yaml that must have a form, in the terms of `checkpoint_schema.misfits`."""
REQUIRED: Mapping[str, Any] = {
    "parallel_residual": False,
    "shared_attention_norm": False,
    "rotary_percentage": 1.0,
    "rope_condense_ratio": 1,
    "rope_adjustments": None,
    "rope_interleave": False,
    "rope_local_base_freq": None,
    "sliding_window_size": None,
    "attention_scores_scalar": None,
    "attention_logit_softcapping": None,
    "final_logit_softcapping": None,
    "post_attention_norm": False,
    "post_mlp_norm": False,
    "norm_qk_type": "default",
    "norm_1": True,
    "norm_2": True,
    "scale_embeddings": False,
    "lm_head_bias": False,
    "latent_attention": None,
    "n_expert": 0,
}
"""The only values, if given, that a Transformer can express."""
NAMES = {
    "embedding": "transformer.wte",
    "blocks": "transformer.h",
    "attention_norm": "norm_1",
    "attention": "attn",
    "o_proj": "proj",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
    "feed_forward_norm": "norm_2",
    "feed_forward": "mlp",
    "gate_proj": "fc_1",
    "down_proj": "proj",
    "norm": "transformer.ln_f",
    "head": "lm_head",
}
"""Parts of the names of tensors: ours, theirs."""


def read(folder: Path, tokenizer: Tokenizer | None) -> ForeignModel:
    """Read a folder; `tokenizer` replaces its own.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is damaged, or the model has parts that a Transformer lacks.
    """
    config = from_config(read_yaml(folder / "model_config.yaml"))
    state = load_data(folder / "lit_model.pth")
    theirs = in_file(folder / "lit_model.pth", state.get("model", state) if isinstance(state, dict) else state)
    return ForeignModel(config, assemble(config, layout(config), theirs), tokenizer or Tokenizer.load(folder))


def from_config(content: Mapping[str, Any]) -> TransformerConfig:
    """The shape of a Transformer from the content of a model_config.yaml.

    Raises:
        ValueError: if it has parts that a Transformer lacks; names them.
    """
    if found := list(misfits(content, SCHEMA)):
        raise ValueError(f"model_config.yaml is incomplete or damaged: {'; '.join(found[:MAX_SHOWN])}")
    mlp = {("LLaMAMLP", None): "swiglu", ("GptNeoxMLP", "none"): "gelu_erf", ("GptNeoxMLP", "tanh"): "gelu"}
    kind = content.get("mlp_class_name", "GptNeoxMLP")
    activation = content.get("gelu_approximate", "none") if kind == "GptNeoxMLP" else None
    norm = {"RMSNorm": "rmsnorm", "LayerNorm": "layernorm"}
    problems = [
        f"{name} {content[name]}" for name, value in REQUIRED.items() if content.get(name, value) not in (value, None)
    ]
    if (kind, activation) not in mlp:
        problems.append(f"mlp_class_name {kind}")
    if content.get("norm_class_name", "LayerNorm") not in norm:
        problems.append(f"norm_class_name {content['norm_class_name']}")
    if problems:
        raise ValueError(f"this LitGPT model has {' and '.join(problems)}, which a Transformer lacks")
    heads, width = content["n_head"], content["n_embd"]
    head_size = content.get("head_size")
    return TransformerConfig(
        vocab_size=content["padded_vocab_size"],
        context_length=content["block_size"],
        d_model=width,
        num_layers=content["n_layer"],
        num_heads=heads,
        num_kv_heads=content.get("n_query_groups"),
        head_dim=None if head_size is None or head_size * heads == width else head_size,
        d_ff=content["intermediate_size"],
        norm=norm[content.get("norm_class_name", "LayerNorm")],  # type: ignore[arg-type]
        mlp=mlp[kind, activation],  # type: ignore[arg-type]
        rope_theta=float(content["rope_base"]),
        norm_eps=content["norm_eps"],
        bias=content["bias"],
        qkv_bias=content["bias"] or content.get("attn_bias", False),
        qk_norm=content.get("norm_qk", False),
    )


def layout(config: TransformerConfig) -> dict[str, Part]:
    """For each tensor of theirs: the tensors of ours that it is made of."""
    gated = config.mlp == "swiglu"
    names = NAMES | {"up_proj": "fc_2" if gated else "fc"}
    parts: dict[str, Part] = {}
    for ours in skeleton(config).state_dict():
        theirs = ".".join(names.get(part, part) for part in ours.split("."))
        three = re.sub(r"[qkv]_proj", "qkv", theirs)
        if three != theirs:
            parts[three] = Part(tuple(re.sub(r"[qkv]_proj", f"{letter}_proj", ours) for letter in "qkv"))
        else:
            parts[theirs] = Part((ours,))
    return parts
