"""A Transformer's weights laid out for decoding, and the cache that it decodes with.

Shapes: B rows, T time, S time in the cache, D d_model, H query heads, G key/value heads, K head size, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from lit_lm.layers import apply_rope, causal_mask
from lit_lm.model import Transformer, TransformerConfig

Weights = Literal["float32", "bfloat16", "int8"]
WEIGHTS: tuple[Weights, ...] = ("float32", "bfloat16", "int8")


class Cache:
    """Keys and values of the tokens that each row has seen."""

    def __init__(self, config: TransformerConfig, batch_size: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.num_layers, batch_size, config.kv_heads, config.context_length, config.head_size)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = [0] * batch_size
        self.context_length = config.context_length

    def keep(self, rows: Sequence[int]) -> None:
        """Make the cache that of these rows, in this order; a row may come more than once."""
        index = torch.tensor(rows, device=self.keys.device)
        self.keys, self.values = self.keys.index_select(1, index), self.values.index_select(1, index)
        self.lengths = [self.lengths[row] for row in rows]


class Decoder:
    """What a Transformer says next, for rows of different lengths.

    The logits equal those of `Transformer.forward`.
    """

    def __init__(self, model: Transformer, weights: Weights | None = None) -> None:
        """
        Args:
            model: Its weights are copied as they are now; they stay on their device.
            weights: Type to keep the matrices in; None: the model's own, or autocast's where that is on.
        """
        self.model = model
        self.config = model.config

    @property
    def num_bytes(self) -> int:
        """Memory that the weights take."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())

    def new_cache(self, batch_size: int) -> Cache:
        weight = self.model.head.weight
        return Cache(self.config, batch_size, weight.device, weight.dtype)

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int], cache: Cache, row: int) -> Tensor:
        """Logits (V) for the token after `ids`, which become all that the row of the cache has seen. One pass."""
        cache.lengths[row] = 0
        logits = self._forward(torch.tensor([ids], device=cache.keys.device), cache, [row])
        cache.lengths[row] = len(ids)
        return logits[0, -1].float()

    @torch.inference_mode()
    def step(self, ids: Sequence[int], cache: Cache) -> Tensor:
        """Logits (B, V) for the token after each row's next one."""
        logits = [
            self._forward(torch.tensor([[token]], device=cache.keys.device), cache, [row])[0, -1]
            for row, token in enumerate(ids)
        ]
        cache.lengths = [length + 1 for length in cache.lengths]
        return torch.stack(logits).float()

    def _forward(self, ids: Tensor, cache: Cache, rows: list[int]) -> Tensor:
        (row,) = rows
        blocks: Any = self.model.blocks
        model, start, config = self.model, cache.lengths[row], self.config
        end = start + ids.shape[1]
        x = model.embedding(ids)
        if model.position_embedding is not None:
            x = x + model.position_embedding.weight[start:end]
        for layer, block in enumerate(blocks):
            attention = block.attention
            h = block.attention_norm(x)
            q, k, v = (attention._heads(proj(h)) for proj in (attention.q_proj, attention.k_proj, attention.v_proj))
            if model.position_embedding is None:
                rope = model.rope_cos[start:end], model.rope_sin[start:end]
                q, k = apply_rope(q, *rope), apply_rope(k, *rope)
            cache.keys[layer, row, :, start:end] = k[0]
            cache.values[layer, row, :, start:end] = v[0]
            y = scaled_dot_product_attention(
                q,
                cache.keys[layer, row : row + 1, :, :end],
                cache.values[layer, row : row + 1, :, :end],
                attn_mask=causal_mask(end - start, end, x.device),
                enable_gqa=config.kv_heads != config.num_heads,
            )
            x = x + attention.o_proj(y.transpose(1, 2).flatten(2))
            x = x + block.feed_forward(block.feed_forward_norm(x))
        return linear(model.norm(x), model.head.weight)
