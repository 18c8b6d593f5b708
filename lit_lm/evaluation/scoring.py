"""Log-probabilities of continuations.

Shapes: B rows, T tokens, N tokens of a continuation, D hidden size, V vocabulary.
"""

import math
import sys
from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from lit_lm.model.transformer import Transformer

Pair = tuple[Sequence[int], Sequence[int]]
"""Ids of a context and of its continuation."""


@torch.inference_mode()
def log_likelihoods(model: Transformer, pairs: Sequence[Pair], batch_size: int) -> list[tuple[float, bool]]:
    """For each pair: the natural logarithm of the continuation's probability after the context, and whether each of its
    tokens is the likeliest.

    Pairs of similar length form a batch, padded on the right, where padding has no effect: attention is causal.

    Args:
        model: The model, on any device.
        pairs: Contexts of at least one token, and continuations of at most as many as the model's context. If the two
            do not fit together, the beginning of the context is left out.
        batch_size: Pairs per forward pass.

    Raises:
        ValueError: if the model's probabilities are NaN.
    """
    device, longest = model.head.weight.device, model.config.context_length
    rows = [torch.tensor([*context, *continuation][-longest - 1 :]) for context, continuation in pairs]
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number]))  # if memory is short, it fails at once
    results = [(0.0, True)] * len(rows)
    starts = range(0, len(rows), batch_size)
    for start in tqdm(starts, desc="scoring", unit="batch", leave=False, disable=None, file=sys.__stderr__):
        numbers = order[start : start + batch_size]
        ids = pad_sequence([rows[number][:-1] for number in numbers], batch_first=True)  # (B, T)
        for number, features in zip(numbers, model.features(ids.to(device)), strict=True):
            targets = rows[number][len(rows[number]) - len(pairs[number][1]) :].to(device)  # (N)
            last = len(rows[number]) - 1
            log_probabilities = model.head(features[last - len(targets) : last]).float().log_softmax(dim=-1)  # (N, V)
            chosen = log_probabilities.gather(1, targets.unsqueeze(1)).cpu().double().sum()
            results[number] = float(chosen), bool((log_probabilities.argmax(dim=-1) == targets).all())
    if any(math.isnan(value) for value, _ in results):
        raise ValueError("the model's probabilities are NaN: it diverged; choose an earlier checkpoint")
    return results
