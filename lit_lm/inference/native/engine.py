"""The C step: runs new tokens through all blocks in one call.

PyTorch makes a call per operation, and for one token of a small model the calls take longer than the arithmetic. The C
step computes the same as `Transformer.forward`; support.py excludes the models for which it does not.

Shapes: B rows, V vocabulary, N tokens of a call, M of them with logits.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_lm.inference.weights import large, stored
from lit_lm.model.config import TransformerConfig
from lit_lm.model.layers import Embedding, Linear
from lit_lm.model.transformer import Transformer

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
OUTPUTS_MULTIPLE, INPUTS_MULTIPLE = 16, 32
"""Padding: outputs and positions to a multiple of 16, inputs to a multiple of 32, which suits every processor."""
MULTIPLY_ADDS_PER_THREAD = 20_000
"""Minimum per thread; with fewer, synchronization costs more than it saves."""
SHAPE = ("num_layers", "d_model", "num_heads", "kv_heads", "head_size")
NORMS = ("attention_norm", "q_norm", "k_norm", "feed_forward_norm")


class _Linear(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("weight", "scale", "bias")] + [
        (name, ctypes.c_int64) for name in ("type", "rows", "cols")
    ]


class _Norm(ctypes.Structure):
    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p)]


class _Block(ctypes.Structure):
    _fields_ = [(name, _Norm) for name in ("attention_norm", "q_norm", "k_norm", "feed_forward_norm")] + [
        (name, _Linear) for name in ("qkv", "o", "up", "down")
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in (*SHAPE, "d_ff", "layernorm", "gated", "exact", "threads")),
        ("norm_eps", ctypes.c_float),
        ("embedding", _Linear),
        ("head", _Linear),
        ("norm", _Norm),
        *((name, ctypes.c_void_p) for name in ("positions", "rope_cos", "rope_sin")),
        ("blocks", ctypes.POINTER(_Block)),
    ]


class _Cache(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("keys", "values", "rows", "positions")] + [
        (name, ctypes.c_int64) for name in ("B", "S")
    ]


class NativeCache:
    """Keys and values (layers, B, G, S, K) of the tokens that each row has seen, in step.c's layout."""

    def __init__(self, config: TransformerConfig, batch_size: int) -> None:
        positions = -(-config.context_length // OUTPUTS_MULTIPLE) * OUTPUTS_MULTIPLE
        shape = (config.num_layers, batch_size, config.kv_heads, positions, config.head_size)
        self.keys, self.values = large(shape, torch.float32), large(shape, torch.float32)
        self.config, self.context_length = config, config.context_length
        self.lengths = [0] * batch_size
        self.rows = list(range(batch_size))
        """Index of each row in keys and values."""
        self.logits = torch.empty(0, config.vocab_size, dtype=torch.float32)
        """Logits of the last step; to allocate new ones each time would take a tenth of the step."""

    def copy_row(self, row: int, others: Sequence[int]) -> None:
        """Copy a row to other rows."""
        filled = -(-self.lengths[row] // OUTPUTS_MULTIPLE) * OUTPUTS_MULTIPLE
        index = torch.tensor([self.rows[other] for other in others], dtype=torch.long)
        for part in (self.keys, self.values):
            part[:, index, :, :filled] = part[:, [self.rows[row]], :, :filled]
        for other in others:
            self.lengths[other] = self.lengths[row]

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may occur more than once."""
        self.lengths = [self.lengths[row] for row in rows]
        self.rows = [self.rows[row] for row in rows]
        if len(set(rows)) < len(rows):
            index = torch.tensor(self.rows)
            self.keys, self.values = self.keys.index_select(1, index), self.values.index_select(1, index)
            self.rows = list(range(len(rows)))

    def add_rows(self, number: int) -> None:
        """Add empty rows at the end; the cache never has more rows than it was made with."""
        free = sorted(set(range(self.keys.shape[1])) - set(self.rows))
        self.rows += free[:number]
        self.lengths += [0] * number
        assert len(self.rows) == len(self.lengths)


class NativeEngine:
    """The C step with a copy of a model's weights, in a layout of its own.

    Arithmetic is float32, and logits equal those of `Transformer.forward` with the same (rounded) weights to within
    1e-5 of the largest. One exception: if the processor has AMX, the inputs of bfloat16 and int8 weights are rounded to
    bfloat16, and logits are within 1e-1. The logits of a row are bitwise the same for any other rows in the batch, and
    whether its tokens come at once or one by one.
    """

    def __init__(self, library: ctypes.CDLL, model: Transformer, stored_dtype: torch.dtype) -> None:
        self.config, self.stored_dtype, self.device = model.config, stored_dtype, torch.device("cpu")
        self.num_bytes = 0
        self._library = library
        self._lanes = int(library.prepare())
        """Number of outputs whose weights are interleaved."""
        self._kept: list[Tensor] = []
        """Tensors whose addresses `_model` holds."""
        self._sizes: list[int] = []
        """Number of weights of each matrix."""
        rope = model.config.positions == "rope"
        self._model = _Model(
            **{name: getattr(model.config, name) for name in SHAPE},
            d_ff=model.config.feed_forward_size,
            layernorm=model.config.norm == "layernorm",
            gated=model.config.mlp == "swiglu",
            exact=model.config.mlp == "gelu_erf",
            norm_eps=model.config.norm_eps,
            embedding=self._linear(model.embedding),
            norm=self._norm(model.norm),
            positions=None if model.position_embedding is None else self._float(model.position_embedding.weight),
            rope_cos=self._table(model.rope_cos) if rope else None,
            rope_sin=self._table(model.rope_sin) if rope else None,
        )
        self._model.head = self._model.embedding if model.config.tie_embeddings else self._linear(model.head)
        blocks = (_Block * model.config.num_layers)()
        for block, source in zip(blocks, model.blocks, strict=True):
            self._fill(block, source)
        self._model.blocks = blocks
        self._matrix_size = sum(self._sizes) // len(self._sizes)

    def new_cache(self, batch_size: int) -> NativeCache:
        """Return an empty cache, for use with this engine only."""
        return NativeCache(self.config, batch_size)

    def prefill(self, ids: Sequence[int], cache: Any, row: int) -> Tensor:
        """Return the logits (V) for the token after `ids`, which replace the cached tokens of this row."""
        logits = torch.empty(1, self.config.vocab_size, dtype=torch.float32)
        self._in_row(ids, self._own(cache), row, logits)
        cache.lengths[row] = len(ids)
        return logits[0]

    def step(self, ids: Sequence[int], cache: Any) -> Tensor:
        """Append ids (B), one per row, to the cache; return the logits (B, V) for the next token.

        The result is valid until the next step with this cache.
        """
        cache = self._own(cache)
        if len(cache.logits) < len(ids):
            cache.logits = torch.empty(len(ids), self.config.vocab_size, dtype=torch.float32)
        logits: Tensor = cache.logits[: len(ids)]
        self._step(ids, cache.rows, cache.lengths, cache, logits)
        cache.lengths = [length + 1 for length in cache.lengths]
        return logits

    def logits(self, ids: Tensor) -> Tensor:
        """Return the logits (B, T, V) for the token after each of ids (B, T), as `Transformer.forward` does."""
        logits, cache = torch.empty(*ids.shape, self.config.vocab_size, dtype=torch.float32), self.new_cache(1)
        for row, out in zip(ids.tolist(), logits, strict=True):
            self._in_row(row, cache, 0, out)
        return logits

    def logsumexp(self, logits: Tensor) -> Tensor:
        """Return log(sum(exp(logits))) (B) of logits (B, V) float32.

        Raises:
            ValueError: if the logits are not a matrix, not float32, or not on the CPU.
        """
        if logits.ndim != 2 or logits.dtype != torch.float32 or logits.device.type != "cpu":
            found = f"{tuple(logits.shape)} {logits.dtype} on {logits.device}"
            raise ValueError(f"the logits are {found}; they must have shape (B, V), float32, on cpu")
        logits = logits.contiguous()
        sums = torch.empty(len(logits), dtype=torch.float32)
        sizes = (ctypes.c_int64(size) for size in (*logits.shape, _threads(logits.numel())))
        self._library.logsumexp(ctypes.c_void_p(logits.data_ptr()), ctypes.c_void_p(sums.data_ptr()), *sizes)
        return sums

    def _own(self, cache: Any) -> NativeCache:
        """Return the cache if it fits this engine."""
        if not isinstance(cache, NativeCache) or cache.config is not self.config:
            raise ValueError("the cache belongs to another engine; make one with new_cache of this engine")
        return cache

    def _in_row(self, ids: Sequence[int], cache: NativeCache, row: int, out: Tensor) -> None:
        """Write ids to the beginning of a row, and the logits for the last ids to `out` (M, V)."""
        self._step(ids, [cache.rows[row]] * len(ids), range(len(ids)), cache, out)

    def _step(
        self, ids: Sequence[int], rows: Sequence[int], positions: Sequence[int], cache: NativeCache, out: Tensor
    ) -> None:
        """Write ids (N) to the cache at rows (N) and positions (N), and the logits for the last ids to `out` (M, V).

        The new positions of a row must follow those in the cache.

        Raises:
            ValueError: if arguments do not fit together, or are out of bounds.
            MemoryError: if memory runs out.
        """
        if not len(ids) == len(rows) == len(positions) >= len(out):
            raise ValueError(f"got {len(ids)} ids for {len(rows)} rows; pass one id per row, and at least one")
        if len(ids) == 0:
            return
        self._check(ids, rows, positions, cache)
        self._model.threads = _threads(len(ids) * self._matrix_size)
        array = ctypes.c_int64 * len(ids)
        rows_array, positions_array = array(*rows), array(*positions)
        part = _Cache(
            cache.keys.data_ptr(),
            cache.values.data_ptr(),
            ctypes.addressof(rows_array),
            ctypes.addressof(positions_array),
            cache.keys.shape[1],
            cache.keys.shape[3],
        )
        failed = self._library.step(
            ctypes.byref(self._model),
            array(*ids),
            ctypes.c_int64(len(ids)),
            ctypes.byref(part),
            ctypes.c_void_p(out.data_ptr()),
            ctypes.c_int64(len(out)),
        )
        if failed:
            raise MemoryError(f"not enough memory for {len(ids)} tokens at once")

    def _check(self, ids: Sequence[int], rows: Sequence[int], positions: Sequence[int], cache: NativeCache) -> None:
        """Check what step.c does not: with other values, it would read and write outside its arrays."""
        size, context, batch_size = self.config.vocab_size, self.config.context_length, cache.keys.shape[1]
        if not 0 <= min(ids) <= max(ids) < size:
            wrong = next(number for number in ids if not 0 <= number < size)
            raise ValueError(f"token id {wrong} is not in the vocabulary; ids range from 0 to {size - 1}")
        if not 0 <= min(positions) <= max(positions) < context:
            end = max(positions) + 1
            raise ValueError(f"{end} tokens do not fit into the context length of {context}; use fewer")
        if not 0 <= min(rows) <= max(rows) < batch_size:
            raise ValueError(f"the rows of the cache range from 0 to {batch_size - 1}")

    def _fill(self, block: Any, source: Any) -> None:
        """Point a block of the C model to the weights of a `Block`."""
        attention, feed_forward = source.attention, source.feed_forward
        norms = (source.attention_norm, attention.q_norm, attention.k_norm, source.feed_forward_norm)
        for name, norm in zip(NORMS, norms, strict=True):
            if norm is not None:
                setattr(block, name, self._norm(norm))
        block.qkv = self._linear(attention.q_proj, attention.k_proj, attention.v_proj)
        block.o = self._linear(attention.o_proj)
        gates = [] if feed_forward.gate_proj is None else [feed_forward.gate_proj]
        block.up = self._linear(*gates, feed_forward.up_proj)
        block.down = self._linear(feed_forward.down_proj)

    def _linear(self, *layers: Linear | Embedding) -> _Linear:
        """Combine layers with the same input into one, with concatenated outputs."""
        weight = torch.cat([layer.weight.detach() for layer in layers])
        biases = [bias.detach().float() for layer in layers if (bias := getattr(layer, "bias", None)) is not None]
        bias = torch.cat(biases) if biases else None
        weight, scale = stored(weight, self.stored_dtype)
        self._sizes.append(weight.numel())
        self.num_bytes += sum(tensor.nbytes for tensor in (weight, scale, bias) if tensor is not None)
        rows, cols = weight.shape
        others = (None if each is None else self._address(_padded(each)) for each in (scale, bias))
        return _Linear(self._packed(weight), *others, TYPES[self.stored_dtype], rows, cols)

    def _packed(self, weight: Tensor) -> int:
        """Copy a weight to the layout that project.h describes; return the address."""
        cols, lanes = weight.shape[1], self._lanes
        depth = cols if weight.dtype == torch.float32 else -(-cols // INPUTS_MULTIPLE) * INPUTS_MULTIPLE
        filled = _padded(weight, cols=depth)
        packed = large((filled.numel(),), weight.dtype)
        if weight.dtype == torch.float32:
            packed.view(-1, cols, lanes).copy_(filled.view(-1, lanes, cols).transpose(1, 2))
        else:
            packed.view(-1, depth // 2, lanes, 2).copy_(filled.view(-1, lanes, depth // 2, 2).transpose(1, 2))
        return self._address(packed)

    def _norm(self, norm: Any) -> _Norm:
        bias = getattr(norm, "bias", None)
        return _Norm(self._float(norm.weight), None if bias is None else self._float(bias))

    def _float(self, weight: Tensor) -> int:
        """Copy a norm's parameter or the learned positions to float32; return the address."""
        copied = weight.detach().float().clone(memory_format=torch.contiguous_format)
        self.num_bytes += copied.nbytes
        return self._address(copied)

    def _table(self, table: Tensor) -> int:
        return self._address(table.float().contiguous())

    def _address(self, tensor: Tensor) -> int:
        self._kept.append(tensor)
        return tensor.data_ptr()


def _threads(multiply_adds: int) -> int:
    """Return the number of threads to use."""
    return max(1, min(torch.get_num_threads(), multiply_adds // MULTIPLY_ADDS_PER_THREAD))


def _padded(tensor: Tensor, cols: int | None = None) -> Tensor:
    """Pad a tensor with zeros to whole blocks of rows and, if given, to `cols` columns."""
    sides = [0, 0 if cols is None else cols - tensor.shape[1]] if tensor.ndim == 2 else []
    return pad(tensor, [*sides, 0, -len(tensor) % OUTPUTS_MULTIPLE])
