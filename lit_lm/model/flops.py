"""Numbers that describe a model: parameters, FLOPs."""

from lit_lm.model.transformer import Transformer, TransformerConfig


def num_parameters(model: Transformer) -> int:
    """Number of weights; a tied matrix counts once."""
    return sum(p.numel() for p in model.parameters())


def flops_per_token(model: Transformer) -> float:
    """Floating-point operations of one training token, forward and backward.

    6 for each weight of a matrix product and 12 * layers * d_model * context_length for attention (Chowdhery et al.
    2022, appendix B). The embedding is a look-up and counts only where it is also the head. Causality is not taken
    off, as is the custom.
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
    """The part of `flops_per_token` that is not in any weight: scores and weighted sums."""
    return 12.0 * config.num_layers * config.d_model * config.context_length
