"""What a Transformer says next: its forward pass for rows of different lengths, with a cache.

Shapes: B rows, T time, S time in the cache, D d_model, H query heads, G key/value heads, K head size, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lit_lm.generation import native
from lit_lm.generation.weights import BlockWeights, DecoderWeights, Weights, large
from lit_lm.layers import apply_rope, gelu, swiglu
from lit_lm.model import Transformer


class Cache:
    """Keys and values of the tokens that each row has seen: (layers, B, G, S, K)."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.lengths = [0] * keys.shape[1]

    @property
    def context_length(self) -> int:
        return self.keys.shape[3]

    def keep(self, rows: Sequence[int]) -> None:
        """Make the cache that of these rows, in this order; a row may come more than once."""
        index = torch.tensor(rows, device=self.keys.device)
        self.keys, self.values = self.keys.index_select(1, index), self.values.index_select(1, index)
        self.lengths = [self.lengths[row] for row in rows]


class Decoder:
    """A Transformer made ready to decode: its weights as they are now, laid out for it.

    On the CPU arithmetic is float32 whatever the weights are kept as, so the logits are those of
    `Transformer.forward` with the same (rounded) weights, within 1e-5 of the largest. Two exceptions: steps of four
    rows or more with weights that are not float32, on a processor that multiplies bfloat16, are within 5e-2; and
    elsewhere than on the CPU arithmetic is that of the weights' type, bfloat16 for int8.
    """

    def __init__(self, model: Transformer, weights: Weights | None = None) -> None:
        """
        Args:
            model: Its weights are copied as they are now, and stay on their device.
            weights: What to keep the matrices as; None: as the model has them, or as autocast takes them where it
                is on.
        """
        self.config = model.config
        self.device = model.head.weight.device
        dtype = _present_dtype(model) if weights is None else getattr(torch, weights)
        self.dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16 if dtype == torch.int8 else dtype
        """Of the arithmetic and the cache."""
        self.weights = DecoderWeights(model, dtype)
        self._native = None
        if self.device.type == "cpu" and dtype in native.TYPES and (library := native.load()):
            self._native = native.NativeStep(library, self.config, self.weights)

    @property
    def num_bytes(self) -> int:
        """Memory that the weights take."""
        return self.weights.num_bytes

    def new_cache(self, batch_size: int) -> Cache:
        """An empty one."""
        config = self.config
        shape = (config.num_layers, batch_size, config.kv_heads, config.context_length, config.head_size)
        return Cache(*(large(shape, self.dtype, self.device).zero_() for _ in range(2)))

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int], cache: Cache, row: int) -> Tensor:
        """Logits (V) for the token after `ids`, in one pass. They become all that this row of the cache has seen."""
        x = self._hidden(torch.tensor([ids], device=self.device), [0], cache, slice(row, row + 1))
        cache.lengths[row] = len(ids)
        return self._head(x[0, -1]) if self._native is None else self._native.head(x[0, -1])

    @torch.inference_mode()
    def step(self, ids: Sequence[int], cache: Cache) -> Tensor:
        """Logits (B, V) for the token after ids, one for each row, which join the cache."""
        if self._native is not None:
            logits = self._native(ids, cache.lengths, cache.keys, cache.values)
        else:
            x = self._hidden(torch.tensor(ids, device=self.device).unsqueeze(1), cache.lengths, cache, slice(None))
            logits = self._head(x[:, -1])
        cache.lengths = [length + 1 for length in cache.lengths]
        return logits

    @torch.inference_mode()
    def logits(self, ids: Tensor) -> Tensor:
        """Logits (B, T, V) for the token after each of ids (B, T), as `Transformer.forward` gives them."""
        cache = self.new_cache(len(ids))
        return self._head(self._hidden(ids, [0] * len(ids), cache, slice(None)))

    def _hidden(self, ids: Tensor, starts: Sequence[int], cache: Cache, rows: slice) -> Tensor:
        """What the head reads (B, T, D), for ids (B, T) that begin at position starts (B) of these rows."""
        first = torch.tensor(starts, device=self.device).unsqueeze(1)
        positions = first + torch.arange(ids.shape[1], device=self.device)  # (B, T)
        x = self.weights.embedding.rows(ids, self.dtype)
        if self.weights.positions is not None:
            x = x + self.weights.positions[positions].to(x.dtype)
        with torch.autocast(self.device.type, enabled=False):
            for block, keys, values in zip(self.weights.blocks, cache.keys, cache.values, strict=True):
                x = x + self._attention(block, block.attention_norm(x), positions, keys[rows], values[rows])
                up = block.up(block.feed_forward_norm(x))
                x = x + block.down(swiglu(*up.chunk(2, dim=-1)) if self.config.mlp == "swiglu" else gelu(up))
            return self.weights.norm(x)  # type: ignore[no-any-return]

    def _head(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            return self.weights.head(x).float()

    def _attention(self, block: BlockWeights, x: Tensor, positions: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention's output for x (B, T, D) over what is and comes into keys and values (B, G, S, K)."""
        heads, kv_heads = self.config.num_heads, self.config.kv_heads
        qkv = block.qkv(x).view(*x.shape[:2], -1, self.config.head_size).transpose(1, 2)  # (B, H + 2G, T, K)
        q, k, v = torch.split(qkv, [heads, kv_heads, kv_heads], dim=1)
        if self.weights.rope is not None:
            cos, sin = (table[positions].unsqueeze(1) for table in self.weights.rope)  # (B, 1, T, K)
            q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        rows = torch.arange(len(x), device=self.device).unsqueeze(1)
        keys[rows, :, positions], values[rows, :, positions] = k.transpose(1, 2), v.transpose(1, 2)
        seen = int(positions.max()) + 1
        y = scaled_dot_product_attention(
            q,
            keys[:, :, :seen],
            values[:, :, :seen],
            attn_mask=(torch.arange(seen, device=self.device) <= positions.unsqueeze(-1)).unsqueeze(1),  # (B, 1, T, S)
            enable_gqa=heads != kv_heads,
        )
        return block.o(y.transpose(1, 2).flatten(2))


def _present_dtype(model: Transformer) -> torch.dtype:
    """What the model's projections compute in."""
    device_type = model.head.weight.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return model.head.weight.dtype
