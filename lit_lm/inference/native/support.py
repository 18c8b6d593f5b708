"""Which models the C step can replace `Transformer.forward` for."""

import ctypes
from dataclasses import fields
from functools import cache as once
from typing import Any

import torch

from lit_lm.inference.native.engine import NativeEngine
from lit_lm.model.config import TransformerConfig
from lit_lm.model.cost import skeleton
from lit_lm.model.transformer import Transformer

SUPPORTED: dict[str, set[Any]] = {
    "norm": {"rmsnorm", "layernorm"},
    "mlp": {"swiglu", "gelu", "gelu_erf"},
    "positions": {"rope", "learned"},
}
"""Choices of the config that step.c implements; a new choice must be implemented there first."""
FREE = {
    "vocab_size", "context_length", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff",
    "rope_theta", "bias", "qkv_bias", "qk_norm", "dropout", "zero_init", "tie_embeddings", "norm_eps",
}  # fmt: skip
"""Fields of the config for which step.c supports any value."""
PROBE: dict[str, Any] = {
    "vocab_size": 16,
    "context_length": 64,
    "d_model": 16,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
}
"""Size of the model on which `unsupported` compares both engines."""


def unsupported(model: Transformer, library: ctypes.CDLL) -> str | None:
    """Return why the C step cannot replace a model's forward pass; None if it can.

    It can if the config has only supported values (listed above) or defaults, the model has only the modules and shapes
    that its config makes, and both engines give the same logits for a small model of this kind, which detects changes
    in `model/`. A change that shows only with more positions than those of PROBE is not detected.
    """
    config = model.config
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in SUPPORTED and value not in SUPPORTED[field.name]:
            return f"it does not implement {field.name} {value}"
        if field.name not in SUPPORTED.keys() | FREE and value != field.default:
            return f"it does not know the option {field.name}"
    expected = skeleton(config)
    kinds = ({name: type(module) for name, module in each.named_modules() if name} for each in (expected, model))
    if type(model) is not Transformer or next(kinds) != next(kinds):
        return "the model's modules differ from those that its config makes"
    if _shapes(expected) != _shapes(model):
        return "the shapes of the model's parameters differ from those that its config makes"
    if any("forward" in vars(module) for module in model.modules()):
        return "the forward pass of one of the model's modules was replaced"
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return "one of the model's modules has a forward hook"
    forwards = frozenset(type(module).forward for module in model.modules())
    kind = {name: getattr(config, name) for name in (*SUPPORTED, "bias", "qkv_bias", "qk_norm", "tie_embeddings")}
    if not _agrees(library, tuple(kind.items()), forwards):
        return "it does not compute the same as Transformer.forward"
    return None


@once
def _agrees(library: ctypes.CDLL, kind: tuple[tuple[str, Any], ...], forwards: frozenset[Any]) -> bool:
    """Return whether the C step gives the logits of `Transformer.forward` for a small random model of this kind.

    `forwards` are the functions that compute it: if one is replaced, the answer is computed again.
    """
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        model = Transformer(TransformerConfig(**PROBE | dict(kind))).float().eval()
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
        ids = torch.randint(PROBE["vocab_size"], (1, PROBE["context_length"]))
        expected = model(ids)
        found = NativeEngine(library, model, torch.float32).logits(ids)
    return torch.allclose(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def _shapes(model: Transformer) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in (*model.named_parameters(), *model.named_buffers())}
