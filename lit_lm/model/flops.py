"""Parameter and FLOP counts of a model."""

from lit_lm.model.config import TransformerConfig
from lit_lm.model.transformer import Transformer


def num_parameters(model: Transformer) -> int:
    """Number of parameters; a tied matrix counts once."""
    return sum(p.numel() for p in model.parameters())


def flops_per_token(model: Transformer) -> float:
    """Floating-point operations per training token, forward and backward.

    6 per weight used in a matrix product, plus 12 * num_layers * d_model * context_length for attention (Chowdhery et
    al. 2022, appendix B). An embedding is a lookup and counts only if it is also the head. As is customary, causality
    is ignored.
    """
    config = model.config
    lookups = sum(
        layer.weight.numel()
        for layer in (model.embedding, model.position_embedding)
        if layer is not None and layer.weight is not model.head.weight
    )
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    return 6.0 * (matrices - lookups) + attention_flops_per_token(config)


def attention_flops_per_token(config: TransformerConfig) -> float:
    """The part of `flops_per_token` that involves no weights: attention scores and weighted sums."""
    return 12.0 * config.num_layers * config.d_model * config.context_length
