"""llama2.c's model.bin: a header, and then all tensors in a fixed order, in one of three versions (see `Header`).

The rows of the query and key projections are in another order than ours: llama2.c rotates neighboring rows of a head
as a pair, we those that are half a head apart.

Source: export.py, run.c and runq.c of https://github.com/karpathy/llama2.c.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lit_lm.files import write_whole
from lit_lm.model.config import TransformerConfig
from lit_lm.model.cost import skeleton
from lit_lm.model.layers import rope_table

MAGIC = 0x616B3432
LONG_HEADER = 256
PART = 2**20
"""Number of values that are converted at once."""

ATTENTION = [f"blocks.{{}}.attention.{name}_proj.weight" for name in "qkvo"]
FEED_FORWARD = [f"blocks.{{}}.feed_forward.{name}_proj.weight" for name in ("gate", "down", "up")]
NORMS = ["blocks.{}.attention_norm.weight", "blocks.{}.feed_forward_norm.weight"]
TABLES = ["rope_cos", "rope_sin"]
SHORT = ["embedding.weight", NORMS[0], *ATTENTION, NORMS[1], *FEED_FORWARD, "norm.weight", *TABLES, "head.weight"]
LONG = [*NORMS, "norm.weight", "embedding.weight", *ATTENTION, *FEED_FORWARD, "head.weight"]
"""Our names of the tensors in order; those with braces are there for each layer."""


@dataclass(frozen=True)
class Header:
    """What a model.bin contains."""

    config: TransformerConfig
    version: int
    """0: float32, for run.c; 1: float32 behind a long header, which neither reads; 2: matrices in int8, for runq.c."""
    group_size: int = 0
    """Number of int8 values with a common scale; 0 for float32."""

    @classmethod
    def read(cls, path: Path) -> "Header":
        """Read the header of a file, and check that the file has the size that follows from it.

        Raises:
            ValueError: if it has an unknown version, impossible sizes, or another size.
        """
        with open(path, "rb") as file:
            start = file.read(LONG_HEADER)
        try:
            header = cls._unpack(start.ljust(LONG_HEADER, b"\0"))
        except ValueError as error:
            problems = "; ".join(str(error).splitlines())
            raise ValueError(f"{path} is damaged, or no model of llama2.c: {problems}") from None
        size, needed = path.stat().st_size, len(header.pack()) + sum(map(header.num_bytes, header.layout.values()))
        if size != needed:
            raise ValueError(
                f"{path} is damaged, or no model of llama2.c: it has {size:,} bytes, but by its header "
                f"(version {header.version}) it has {needed:,}"
            )
        return header

    @classmethod
    def _unpack(cls, start: bytes) -> "Header":
        version, tied, group_size = 0, 1, 0
        if struct.unpack_from("<I", start) == (MAGIC,):
            version, tied, group_size = struct.unpack_from("<4xi28xBi", start)
            if version not in (1, 2):
                raise ValueError(f"its version is {version}; it must be 1 or 2")
        sizes = struct.unpack_from("<7i", start, 8 if version else 0)
        width, hidden, layers, heads, kv_heads, vocab_size, context = sizes
        config = TransformerConfig(
            vocab_size=vocab_size if version else abs(vocab_size),
            context_length=context,
            d_model=width,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            d_ff=hidden,
            tie_embeddings=bool(tied) if version else vocab_size > 0,
        )
        if version < 2:
            return cls(config, version)
        matrices = {math.prod(shape) for shape in cls(config, version).layout.values() if len(shape) == 2}
        if group_size < 1 or any(count % group_size for count in matrices):
            raise ValueError(f"its group size is {group_size}; it must divide the size of each matrix")
        return cls(config, version, group_size)

    def pack(self) -> bytes:
        """The bytes of the header."""
        config = self.config
        sizes = [config.d_model, config.feed_forward_size, config.num_layers, config.num_heads, config.kv_heads]
        if not self.version:
            vocab_size = config.vocab_size if config.tie_embeddings else -config.vocab_size
            return struct.pack("<7i", *sizes, vocab_size, config.context_length)
        sizes += [config.vocab_size, config.context_length]
        packed = struct.pack("<Ii7iBi", MAGIC, self.version, *sizes, config.tie_embeddings, self.group_size)
        return packed.ljust(LONG_HEADER, b"\0")

    @cached_property
    def layout(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each tensor, in order."""
        config = self.config
        one_layer = skeleton(replace(config, num_layers=1)).state_dict()
        shapes = {name: tuple(tensor.shape) for name, tensor in one_layer.items()}
        shapes |= dict.fromkeys(TABLES, (config.context_length, config.head_size // 2))
        return {
            name.format(layer): shapes[name.format(0)]
            for name in (LONG if self.version else SHORT)
            if name != "head.weight" or not config.tie_embeddings
            for layer in range(config.num_layers if "{}" in name else 1)
        }

    def num_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of this shape."""
        count = math.prod(shape)
        return count + 4 * count // self.group_size if self.group_size and len(shape) == 2 else 4 * count


def write_model(
    path: Path, config: TransformerConfig, weights: Mapping[str, Tensor], ids: Tensor, group_size: int = 0
) -> None:
    """Write a model.bin, with only a part of a tensor in memory at a time.

    Args:
        path: The file.
        config: Shape of the model.
        weights: Its tensors.
        ids: For each id (V) in the file: the row of ours.
        group_size: Number of int8 values with a common scale, a divisor of d_model and d_ff; 0: float32.
    """
    header = Header(config, 2 if group_size else 0, group_size)
    tables = rope_table(config.context_length, config.head_size, config.rope_theta)
    tensors = {**weights, **{name: table.chunk(2, dim=1)[0] for name, table in zip(TABLES, tables, strict=True)}}
    with write_whole(path) as file:
        file.write(header.pack())
        for name, shape in header.layout.items():
            is_quantized = bool(group_size) and len(shape) == 2
            rows = ids if name in ("embedding.weight", "head.weight") else _rows(name, config, shape[0])
            scales = []
            for part in rows.split(max(1, PART * shape[0] // math.prod(shape))):  # type: ignore[no-untyped-call]
                values = tensors[name][part].float()
                if is_quantized:
                    values, scale = quantize(values, group_size)
                    scales.append(scale)
                file.write(values.numpy().tobytes())
            for scale in scales:
                file.write(scale.numpy().tobytes())


def quantize(values: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Values rounded to int8 in groups, one group in a row, and the scale of each: the largest becomes 127 or -127."""
    groups = values.reshape(-1, group_size)
    scales = groups.abs().amax(dim=1) / 127
    rounded = (groups / torch.where(scales > 0, scales, 1)[:, None]).round().clamp(-127, 127)
    return rounded.to(torch.int8), scales


class ModelFile:
    """The tensors of a model.bin; each is read when it is needed."""

    def __init__(self, path: Path) -> None:
        self.path, self.header = path, Header.read(path)
        self._places: dict[str, tuple[int, tuple[int, ...]]] = {}
        offset = len(self.header.pack())
        for name, shape in self.header.layout.items():
            self._places[name] = offset, shape
            offset += self.header.num_bytes(shape)

    def read(self, name: str, into: Tensor) -> Tensor:
        """Read a tensor into one of its shape in float32, with its rows in our order; returns `into`."""
        offset, shape = self._places[name if name in self._places else "embedding.weight"]
        count, group_size = math.prod(shape), self.header.group_size
        is_quantized = bool(group_size) and len(shape) == 2
        mapped = np.memmap(self.path, np.int8 if is_quantized else np.float32, "c", offset, shape)
        into.copy_(torch.from_numpy(mapped))
        if is_quantized:
            scales = np.fromfile(self.path, np.float32, count // group_size, offset=offset + count)
            into.view(-1, group_size).mul_(torch.from_numpy(scales)[:, None])
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            into.copy_(into[_rows(name, self.header.config, shape[0]).argsort()])
        return into


def _rows(name: str, config: TransformerConfig, count: int) -> Tensor:
    """For each row of a tensor of theirs: its number in ours."""
    rows = torch.arange(count)
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        return rows.view(-1, 2, config.head_size // 2).transpose(1, 2).flatten()  # pairs side by side
    return rows
