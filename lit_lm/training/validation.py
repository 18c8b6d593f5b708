"""Metrics of the validation data, over all of it and for each source."""

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_lm.data.info import DataInfo
from lit_lm.model.losses import IGNORE_INDEX, bits_per_byte, perplexity

ASCII_SHARE = 0.9
"""Text with fewer characters per byte than this has bits per character, too; for English, the two are nearly equal."""


class ValidationMetrics(Metric):
    """Loss, perplexity and bits per byte over all validation data and for each source; torchmetrics adds up devices."""

    full_state_update = False
    sums: Tensor
    """For each loader, sum of the token losses and number of tokens; shape (loaders, 2)."""

    def __init__(self, info: DataInfo, num_loaders: int) -> None:
        super().__init__()
        self.info = info
        self.add_state("sums", torch.zeros(num_loaders, 2), dist_reduce_fx="sum")

    def update(self, loss: Tensor, targets: Tensor, loader: int) -> None:
        """Add a batch of a loader: its mean loss, and targets (B, T) of which it is the mean."""
        tokens = (targets != IGNORE_INDEX).sum()
        self.sums[loader] += torch.stack([loss * tokens, tokens.float()])

    def compute(self) -> dict[str, float]:
        """Metrics by name; those in bytes only if the sizes of the sources are known."""
        sums, sizes = self.sums.cpu(), list(self.info.validation.values())
        loss = float(sums[:, 0].sum() / sums[:, 1].sum())
        metrics = {"loss": loss, "perplexity": perplexity(loss)}
        if sizes:
            num_bytes, characters = sum(size.bytes for size in sizes), sum(size.characters for size in sizes)
            bits = bits_per_byte(loss, num_bytes / sum(size.tokens for size in sizes))
            metrics["bits_per_byte"] = bits
            if characters < ASCII_SHARE * num_bytes:
                metrics["bits_per_character"] = bits * num_bytes / characters
        if len(sizes) > 1:
            for (name, size), (total, tokens) in zip(self.info.validation.items(), sums.tolist(), strict=True):
                metrics[f"loss/{name}"] = total / tokens
                metrics[f"bits_per_byte/{name}"] = bits_per_byte(total / tokens, size.bytes / size.tokens)
        return metrics
