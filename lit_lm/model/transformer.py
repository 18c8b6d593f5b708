"""A decoder-only Transformer: token ids in, logits out.

One class for two families. The defaults are Llama's (RoPE, RMSNorm, SwiGLU, no biases); for GPT-2, set norm=layernorm,
mlp=gelu, positions=learned, bias=true and tie_embeddings=true. `Transformer.forward` is the only definition of the
computation: training calls it without a cache, generation with one. Read from leaf to root: cache, attention,
feed-forward, block, model.

Shapes: B batch, T tokens, S cached positions, D d_model, H query heads, G key/value heads, K head size, V vocabulary.
"""

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from lit_lm.model.attention import causal_attention, supports
from lit_lm.model.config import TransformerConfig
from lit_lm.model.layers import (
    Embedding,
    LayerNorm,
    Linear,
    RMSNorm,
    apply_rope,
    causal_mask,
    document_mask,
    document_starts,
    gelu,
    gelu_erf,
    rope_table,
    swiglu,
)

Layer = TypeVar("Layer", bound=nn.Module)


class LayerCache(NamedTuple):
    """The part of a `KVCache` that one block reads and writes in a forward pass."""

    keys: Tensor  # (B, G, S, K)
    values: Tensor  # (B, G, S, K)
    rows: Tensor  # (B, 1)
    positions: Tensor  # (B, T)
    end: int
    """One past the last position in use by any row."""

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v (B, G, T, K) of the new tokens; return keys and values (B, G, end, K) of all positions in use."""
        self.keys[self.rows, :, self.positions] = k.transpose(1, 2)
        self.values[self.rows, :, self.positions] = v.transpose(1, 2)
        return self.keys[:, :, : self.end], self.values[:, :, : self.end]


class KVCache:
    """Keys and values (layers, B, G, S, K) of the tokens seen so far; rows may differ in length."""

    def __init__(self, config: TransformerConfig, batch_size: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.num_layers, batch_size, config.kv_heads, config.context_length, config.head_size)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = [0] * batch_size
        """Number of tokens that each row has seen."""
        self.context_length = config.context_length
        """Maximum number of tokens per row."""

    def row(self, number: int) -> "KVCache":
        """Return an empty cache of one row that shares the memory of row `number`."""
        single = copy.copy(self)
        single.keys, single.values = self.keys[:, number : number + 1], self.values[:, number : number + 1]
        single.lengths = [0]
        return single

    def copy_row(self, row: int, others: Sequence[int]) -> None:
        """Copy a row to other rows."""
        for other in others:
            self.keys[:, other], self.values[:, other] = self.keys[:, row], self.values[:, row]
            self.lengths[other] = self.lengths[row]

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may occur more than once."""
        index = torch.tensor(rows, device=self.keys.device, dtype=torch.long)
        self.keys, self.values = self.keys.index_select(1, index), self.values.index_select(1, index)
        self.lengths = [self.lengths[row] for row in rows]

    def add_rows(self, number: int) -> None:
        """Add empty rows at the end."""
        shape = (len(self.keys), number, *self.keys.shape[2:])
        self.keys, self.values = (torch.cat([part, part.new_zeros(shape)], dim=1) for part in (self.keys, self.values))
        self.lengths += [0] * number

    def extend(self, num_tokens: int) -> tuple[list[LayerCache], Tensor | None]:
        """Reserve the next `num_tokens` positions of every row; return the part and the mask of each block."""
        device = self.keys.device
        starts = torch.tensor(self.lengths, device=device).unsqueeze(1)  # (B, 1)
        positions = starts + torch.arange(num_tokens, device=device)  # (B, T)
        rows = torch.arange(len(self.lengths), device=device).unsqueeze(1)
        end = max(self.lengths) + num_tokens
        mask = None
        if any(self.lengths) and (num_tokens > 1 or len(set(self.lengths)) > 1):
            mask = causal_mask(positions, end).unsqueeze(1)  # (B, 1, T, end)
        self.lengths = [length + num_tokens for length in self.lengths]
        layers = [LayerCache(keys, values, rows, positions, end) for keys, values in zip(self.keys, self.values)]  # noqa: B905
        return layers, mask


class Attention(nn.Module):
    """Causal multi-head attention with grouped key/value heads (Ainslie et al. 2023)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        qkv_bias = config.bias if config.qkv_bias is None else config.qkv_bias
        q_size, kv_size = config.num_heads * config.head_size, config.kv_heads * config.head_size
        self.q_proj = Linear(config.d_model, q_size, qkv_bias)
        self.k_proj = Linear(config.d_model, kv_size, qkv_bias)
        self.v_proj = Linear(config.d_model, kv_size, qkv_bias)
        self.o_proj = Linear(q_size, config.d_model, config.bias)
        self.q_norm = RMSNorm(config.head_size, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_size, config.norm_eps) if config.qk_norm else None

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
        starts: Tensor | None = None,
    ) -> Tensor:
        """Attention's output (B, T, D) for x (B, T, D).

        Args:
            x: The normed residual stream.
            rope: cos and sin for the positions of x, (T, K) or (B, 1, T, K); None: no rotation.
            mask: True (B, 1, T, S) where a query may attend; None: to its own and all earlier positions.
            cache: Keys and values of the earlier positions; those of x are added.
            starts: First position (B, T) that each query may attend to, without mask and cache; None: 0.
        """
        q, k, v = (self._heads(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        if cache is not None:
            k, v = cache.append(k, v)
        dropout_p = self.config.dropout if self.training else 0.0
        if self.training and mask is None and supports(q, k):
            y = causal_attention(q, k, v, dropout_p, starts)  # (B, H, T, K)
        else:
            mask = mask if starts is None else document_mask(starts)
            y = scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                dropout_p=dropout_p,
                is_causal=mask is None and q.shape[2] > 1,
                enable_gqa=self.config.kv_heads != self.config.num_heads,
            )
        return self.o_proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.config.head_size).transpose(1, 2)  # (B, T, HK) -> (B, H, T, K)


class FeedForward(nn.Module):
    """The two- or three-matrix network applied at each position."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        size = config.feed_forward_size
        self.gate_proj = Linear(config.d_model, size, config.bias) if config.mlp == "swiglu" else None
        self.up_proj = Linear(config.d_model, size, config.bias)
        self.down_proj = Linear(size, config.d_model, config.bias)
        self.mlp = config.mlp

    def forward(self, x: Tensor) -> Tensor:
        up = self.up_proj(x)
        if self.gate_proj is not None:
            hidden = swiglu(self.gate_proj(x), up)
        elif self.mlp == "gelu":
            hidden = gelu(up)
        else:
            hidden = gelu_erf(up)
        return self.down_proj(hidden)  # type: ignore[no-any-return]


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)) (pre-norm)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.attention_norm = _norm(config)
        self.attention = Attention(config)
        self.feed_forward_norm = _norm(config)
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
        starts: Tensor | None = None,
    ) -> Tensor:
        """The residual stream (B, T, D) after this block; arguments as in `Attention.forward`."""
        attended = self.attention(self.attention_norm(x), rope, mask, cache, starts)
        x = x + dropout(attended, self.dropout, self.training)
        return x + dropout(self.feed_forward(self.feed_forward_norm(x)), self.dropout, self.training)


class Transformer(nn.Module):
    """Embedding, blocks, norm, head."""

    rope_cos: Tensor  # (context_length, K)
    rope_sin: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute_blocks = False
        """Activation checkpointing: training keeps only the input of each block (Chen et al. 2016)."""
        self.embedding = Embedding(config.vocab_size, config.d_model)
        self.position_embedding = None
        if config.positions == "learned":
            self.position_embedding = Embedding(config.context_length, config.d_model)
        else:
            cos, sin = rope_table(config.context_length, config.head_size, config.rope_theta)
            self.register_buffer("rope_cos", cos, persistent=False)
            self.register_buffer("rope_sin", sin, persistent=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = _norm(config)
        self.head = Linear(config.d_model, config.vocab_size)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.init_weights()

    def init_weights(self) -> None:
        """Initialize all parameters, as in `init_weights`."""
        init_weights(self, self.config.num_layers, self.config.zero_init)

    def hidden_matrices(self) -> list[Tensor]:
        """The matrices of the blocks, which map one hidden vector to another."""
        return [p for p in self.blocks.parameters() if p.ndim == 2]

    def forward(self, ids: Tensor, cache: KVCache | None = None, documents: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) for the token after each of ids (B, T).

        Args:
            ids: Token ids.
            cache: The tokens before ids; ids are added to it.
            documents: Document index (B, T) of each token, which never decreases along a row; a token attends only to
                its own document. Not together with a cache.

        Raises:
            ValueError: if the positions exceed the context length.
        """
        return self.head(self.features(ids, cache, documents))  # type: ignore[no-any-return]

    def features(self, ids: Tensor, cache: KVCache | None = None, documents: Tensor | None = None) -> Tensor:
        """The head's input (B, T, D): the normed residual stream. Arguments and errors as in `forward`."""
        assert cache is None or documents is None
        num_tokens = ids.shape[1]
        end = num_tokens if cache is None else max(cache.lengths) + num_tokens
        if end > self.config.context_length:
            raise ValueError(f"{end} tokens do not fit into the context length of {self.config.context_length}")
        positions: slice | Tensor = slice(num_tokens)  # the same for all rows, or (B, T)
        layers: Sequence[LayerCache | None] = [None] * len(self.blocks)
        mask, starts = None, None if documents is None else document_starts(documents)
        if cache is not None:
            layers, mask = cache.extend(num_tokens)
            positions = layers[0].positions
        x, rope = self._embed(ids, positions, starts)
        recompute = self.recompute_blocks and self.training and torch.is_grad_enabled()
        for block, layer in zip(self.blocks, layers, strict=True):
            if recompute:
                x = checkpoint(block, x, rope, mask, layer, starts, use_reentrant=False)
            else:
                x = block(x, rope, mask, layer, starts)
        return self.norm(x)  # type: ignore[no-any-return]

    def _embed(
        self, ids: Tensor, positions: slice | Tensor, starts: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """The residual stream (B, T, D) before the first block, and RoPE's cos and sin for its positions."""
        x, rope = self.embedding(ids), None
        if self.position_embedding is None:
            # RoPE depends on differences of positions alone, so documents can keep the positions of their window
            rope = self.rope_cos[positions], self.rope_sin[positions]
            if isinstance(positions, Tensor):
                rope = rope[0].unsqueeze(1), rope[1].unsqueeze(1)  # (B, 1, T, K)
        else:
            if starts is not None:
                positions = torch.arange(ids.shape[1], device=ids.device) - starts
            if isinstance(positions, slice):
                added = self.position_embedding.weight[positions]
            else:
                added = self.position_embedding(positions)
            x = x + added.to(x.dtype)
        return dropout(x, self.config.dropout, self.training), rope


def _norm(config: TransformerConfig) -> RMSNorm | LayerNorm:
    if config.norm == "rmsnorm":
        return RMSNorm(config.d_model, config.norm_eps)
    return LayerNorm(config.d_model, config.norm_eps, config.bias)


@torch.no_grad()
def init_weights(module: Layer, num_layers: int = 1, zero_init: bool = False) -> Layer:
    """Initialize all parameters of a Transformer, or of one of its layers that is used alone; return it.

    Matrices and embeddings are normal with standard deviation 0.02; the projections onto the residual stream (o_proj,
    down_proj) have 0.02 / sqrt(2 num_layers), so that its variance does not grow with depth (Radford et al. 2019), or
    are zero with `zero_init`. Norms are one, biases zero.
    """
    for name, parameter in module.named_parameters():
        onto_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
        if name.endswith("bias") or (onto_residual and zero_init):
            parameter.zero_()
        elif parameter.ndim < 2:
            parameter.fill_(1)
        else:
            parameter.normal_(std=0.02 / math.sqrt(2 * num_layers) if onto_residual else 0.02)
    return module
