"""Numbers that describe a model and a run: parameters, FLOPs, utilization, bits per byte."""

import math
import time

import torch

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


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """Compressed size of the text relative to its size, from the mean loss per token in nats.

    Comparable between tokenizers, as loss and perplexity are not.
    """
    return loss / math.log(2) / bytes_per_token


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


def measured_peak_flops(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """FLOP/s that a square matrix product reaches on the device: what utilization is a share of.

    The best of a few products of `size` x `size` matrices (1,024 on a CPU, 8,192 elsewhere: some 50 ms in all).
    """
    size = size or (1024 if device.type == "cpu" else 8192)
    a = torch.ones(size, size, device=device, dtype=dtype)
    best = math.inf
    for _ in range(4):  # the first one warms up
        _synchronize(device)
        start = time.perf_counter()
        a @ a
        _synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
