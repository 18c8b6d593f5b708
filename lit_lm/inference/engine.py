"""What a Transformer says next: its forward pass for rows of different lengths, with a cache.

Shapes: B rows, T time, S time in the cache, D d_model, H query heads, G key/value heads, K head size, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lit_lm.inference.native import engine as native
from lit_lm.inference.weights import BlockWeights, DecoderWeights, Weights, large
from lit_lm.model.layers import apply_rope, gelu, swiglu
from lit_lm.model.transformer import Transformer


class Cache:
    """Keys and values of the tokens that each row has seen: (layers, B, G, S, K), or in step.c's order."""

    def __init__(self, keys: Tensor, values: Tensor, context_length: int, *, in_order: bool) -> None:
        """
        Args:
            keys: Empty.
            values: Empty.
            context_length: Tokens that a row has room for.
            in_order: Whether each row must lie at its own number; else `rows` tells where it lies.
        """
        self.keys, self.values, self.context_length, self.in_order = keys, values, context_length, in_order
        self.rows = list(range(keys.shape[1]))
        self.lengths = [0] * keys.shape[1]
        self.logits = torch.empty(0)
        """Those of the last step; to ask for memory anew each time would take a tenth of it."""

    def copy(self, row: int, others: Sequence[int]) -> None:
        """Let other rows have seen what a row has."""
        for kept in (self.keys, self.values):
            filled = min(kept.shape[3], -(-self.lengths[row] // native.BLOCK) * native.BLOCK)
            for other in others:
                kept[:, self.rows[other], :, :filled] = kept[:, self.rows[row], :, :filled]
        for other in others:
            self.lengths[other] = self.lengths[row]

    def keep(self, rows: Sequence[int]) -> None:
        """Make the cache that of these rows, in this order; a row may come more than once."""
        self.lengths = [self.lengths[row] for row in rows]
        self.rows = [self.rows[row] for row in rows]
        if self.in_order or len(set(rows)) < len(rows):
            index = torch.tensor(self.rows, device=self.keys.device)
            self.keys, self.values = self.keys.index_select(1, index), self.values.index_select(1, index)
            self.rows = list(range(len(rows)))


class Decoder:
    """A Transformer made ready to decode: its weights as they are now, laid out for it.

    On the CPU arithmetic is float32 whatever the weights are kept as, so the logits are those of
    `Transformer.forward` with the same (rounded) weights, within 1e-5 of the largest. Two exceptions: where step.c has
    AMX, the inputs of bfloat16 and int8 weights are rounded to bfloat16, and logits are within 5e-2; and elsewhere than
    on the CPU arithmetic is that of the weights' type, bfloat16 for int8. With step.c a row's logits are the same to
    the last bit whatever rows are beside it, and whether its tokens came at once or one by one.
    """

    def __init__(self, model: Transformer, weights: Weights | None = None) -> None:
        """
        Args:
            model: Its weights are copied as they are now, and stay on their device.
            weights: What to keep the matrices as; None: as the model has them, or as autocast takes them where it
                is on, but on the CPU float16 becomes float32.
        """
        self.config = model.config
        self.device = model.head.weight.device
        on_cpu = self.device.type == "cpu"
        kept = _present_dtype(model) if weights is None else getattr(torch, weights)
        self.kept_as = torch.float32 if on_cpu and kept not in native.TYPES else kept
        self.dtype = torch.float32 if on_cpu else torch.bfloat16 if kept == torch.int8 else kept
        """Of the arithmetic and the cache."""
        self.weights = DecoderWeights(model, self.kept_as)
        self.num_bytes = self.weights.num_bytes
        """Memory that the weights take."""
        self._native = None
        if on_cpu and (library := native.load()):
            self._native = native.NativeStep(library, self.config, self.weights)
            del self.weights  # it has its own

    def new_cache(self, batch_size: int) -> Cache:
        """An empty one."""
        config = self.config
        if self._native is not None:
            return Cache(*self._native.new_cache(batch_size), config.context_length, in_order=False)
        shape = (config.num_layers, batch_size, config.kv_heads, config.context_length, config.head_size)
        keys, values = (large(shape, self.dtype, self.device).zero_() for _ in range(2))
        return Cache(keys, values, config.context_length, in_order=True)

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int], cache: Cache, row: int) -> Tensor:
        """Logits (V) for the token after `ids`, in one pass. They become all that this row of the cache has seen."""
        if self._native is not None:
            logits = self._in_row(ids, cache, row, last=1)[0]
        else:
            x = self._hidden(torch.tensor([ids], device=self.device), [0], cache, slice(row, row + 1))
            logits = self._head(x[0, -1])
        cache.lengths[row] = len(ids)
        return logits

    @torch.inference_mode()
    def step(self, ids: Sequence[int], cache: Cache) -> Tensor:
        """Logits (B, V) for the token after ids, one for each row, which join the cache. They hold until the next
        step with this cache.
        """
        if self._native is not None:
            if len(cache.logits) < len(ids):
                cache.logits = torch.empty(len(ids), self.config.vocab_size)
            out = cache.logits[: len(ids)]
            logits = self._native(ids, cache.rows, cache.lengths, (cache.keys, cache.values), len(ids), out)
        else:
            x = self._hidden(torch.tensor(ids, device=self.device).unsqueeze(1), cache.lengths, cache, slice(None))
            logits = self._head(x[:, -1])
        cache.lengths = [length + 1 for length in cache.lengths]
        return logits

    @torch.inference_mode()
    def logits(self, ids: Tensor) -> Tensor:
        """Logits (B, T, V) for the token after each of ids (B, T), as `Transformer.forward` gives them."""
        cache = self.new_cache(len(ids))
        if self._native is not None:
            rows = [self._in_row(row, cache, i, last=len(row)) for i, row in enumerate(ids.tolist())]
            return torch.stack(rows)
        return self._head(self._hidden(ids, [0] * len(ids), cache, slice(None)))

    def log_totals(self, logits: Tensor) -> Tensor:
        """What logits (B, V) are above log-probabilities, in each row (B)."""
        return logits.logsumexp(dim=-1) if self._native is None else self._native.log_totals(logits)

    def _in_row(self, ids: Sequence[int], cache: Cache, row: int, last: int) -> Tensor:
        """Logits (last, V) after the last of ids, with which the row begins."""
        assert self._native is not None
        place = [cache.rows[row]] * len(ids)
        return self._native(ids, place, range(len(ids)), (cache.keys, cache.values), last)

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
        if block.q_norm is not None and block.k_norm is not None:
            q, k = block.q_norm(q), block.k_norm(k)
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
