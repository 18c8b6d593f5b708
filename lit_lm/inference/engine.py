"""Engines that run a Transformer token by token: its forward pass with a cache, or the equivalent C step.

Shapes: B rows, T time, V vocabulary.
"""

import logging
from collections.abc import Sequence
from functools import cache as once
from typing import Protocol

import torch
from torch import Tensor

from lit_lm.inference.native import engine as native
from lit_lm.inference.native.support import unsupported
from lit_lm.inference.weights import WeightDtype, num_bytes, with_stored_weights
from lit_lm.kernels import build
from lit_lm.model.config import TransformerConfig
from lit_lm.model.transformer import KVCache, Transformer

log = logging.getLogger(__name__)


class Cache(Protocol):
    """An engine's state after the tokens that each row has seen."""

    lengths: list[int]
    """Number of tokens that each row has seen."""
    context_length: int
    """Maximum number of tokens per row."""

    def copy_row(self, row: int, others: Sequence[int]) -> None:
        """Copy a row to other rows."""

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may occur more than once."""

    def add_rows(self, number: int) -> None:
        """Add empty rows at the end; the cache never has more rows than it was made with."""


class Engine(Protocol):
    """A Transformer ready to generate. It has its own copy of the weights."""

    config: TransformerConfig
    device: torch.device
    stored_dtype: torch.dtype
    """Data type in which the matrices are stored."""
    num_bytes: int
    """Size of the weights in memory."""

    def new_cache(self, batch_size: int) -> Cache:
        """Return an empty cache, for use with this engine only."""

    def prefill(self, ids: Sequence[int], cache: Cache, row: int) -> Tensor:
        """Return the logits (V) for the token after `ids`, which replace the cached tokens of this row."""

    def step(self, ids: Sequence[int], cache: Cache) -> Tensor:
        """Append ids (B), one per row, to the cache; return the logits (B, V) for the next token.

        The result is valid until the next step with this cache.
        """

    def logits(self, ids: Tensor) -> Tensor:
        """Return the logits (B, T, V) for the token after each of ids (B, T), as `Transformer.forward` does."""

    def logsumexp(self, logits: Tensor) -> Tensor:
        """Return log(sum(exp(logits))) (B) of logits (B, V)."""


class TorchEngine:
    """`Transformer.forward` with a cache, for any model on any device.

    On the CPU, arithmetic is always float32, so the logits equal those of a model with the same (rounded) weights. On
    other devices, arithmetic has the data type of the stored weights, or bfloat16 for int8.
    """

    def __init__(self, model: Transformer, stored_dtype: torch.dtype) -> None:
        self.config, self.stored_dtype = model.config, stored_dtype
        self.device = model.head.weight.device
        compute_dtype = torch.bfloat16 if stored_dtype == torch.int8 else stored_dtype
        self.compute_dtype = torch.float32 if self.device.type == "cpu" else compute_dtype
        self.model = with_stored_weights(model, stored_dtype, self.compute_dtype)
        self.num_bytes = num_bytes(self.model)

    def new_cache(self, batch_size: int) -> KVCache:
        return KVCache(self.config, batch_size, self.device, self.compute_dtype)

    def prefill(self, ids: Sequence[int], cache: Cache, row: int) -> Tensor:
        assert isinstance(cache, KVCache)
        single = cache.row(row)
        logits = self._forward(torch.tensor([ids], device=self.device), single, last=True)
        cache.lengths[row] = len(ids)
        return logits[0, 0]

    def step(self, ids: Sequence[int], cache: Cache) -> Tensor:
        assert isinstance(cache, KVCache)
        return self._forward(torch.tensor(ids, device=self.device).unsqueeze(1), cache, last=True)[:, 0]

    def logits(self, ids: Tensor) -> Tensor:
        return self._forward(ids, None, last=False)

    def logsumexp(self, logits: Tensor) -> Tensor:
        return logits.logsumexp(dim=-1)

    @torch.inference_mode()
    def _forward(self, ids: Tensor, cache: KVCache | None, *, last: bool) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            features = self.model.features(ids, cache)
            return self.model.head(features[:, -1:] if last else features).float()  # type: ignore[no-any-return]


def make_engine(model: Transformer, weight_dtype: WeightDtype | None = None) -> Engine:
    """Return the fastest engine for a model on its device.

    Args:
        model: Model whose weights are copied.
        weight_dtype: Data type in which to store the matrices; None: autocast's if it is on, else the model's (on the
            CPU, float32 unless this is bfloat16).

    Raises:
        ValueError: if parts of the model are on different devices.
    """
    device = model.head.weight.device
    if others := {str(tensor.device) for tensor in (*model.parameters(), *model.buffers())} - {str(device)}:
        raise ValueError(f"the model is on {device} and {', '.join(sorted(others))}; move all of it to one device")
    dtype = _present_dtype(model) if weight_dtype is None else getattr(torch, weight_dtype)
    if device.type != "cpu":
        return TorchEngine(model, dtype)
    dtype = dtype if dtype in native.TYPES else torch.float32
    if (library := build.load("step")) is None:
        return TorchEngine(model, dtype)
    with torch.autocast(device.type, enabled=False):  # both engines compute in float32
        reason = unsupported(model, library)
    if reason is not None:
        _report(reason)
        return TorchEngine(model, dtype)
    return native.NativeEngine(library, model, dtype)


@once
def _report(reason: str) -> None:
    log.warning(f"generating with PyTorch because the faster C step cannot be used: {reason}")


def _present_dtype(model: Transformer) -> torch.dtype:
    """Return the data type in which the model's projections compute."""
    device_type = model.head.weight.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return model.head.weight.dtype
