"""GGUF: one file with weights and tokenizer, for llama.cpp and the programs that contain it.

The format is specified in docs/gguf.md of the repository ggml; which tensors an architecture has, in src/models of
llama.cpp. Their names, and the rounding to q8_0, are those of llama.cpp's library `gguf`.

llama.cpp rotates the queries and keys of Qwen3 as we do, dimensions i and i + K/2 as a pair, but those of Llama as in
the paper of RoPE, dimensions 2i and 2i + 1. So the rows of Llama's projections are written in another order.
"""

import math
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
import torch
from gguf import (
    GGML_QUANT_SIZES,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFReader,
    GGUFWriter,
    LlamaFileType,
    get_tensor_name_map,
)
from gguf.constants import GGML_QUANT_VERSION
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray
from torch import Tensor

from lit_lm.checkpoint import Checkpoint
from lit_lm.interop.architectures import Architecture, architecture_of, layout, weight_of
from lit_lm.interop.gguf_tokenizer import add_tokenizer, read_tokenizer
from lit_lm.interop.proof import check_ids, check_tokenizer, largest_difference, logits_of
from lit_lm.model.config import TransformerConfig
from lit_lm.model.cost import skeleton
from lit_lm.runs import model_name

ARCHITECTURES = {name: architecture for architecture, name in MODEL_ARCH_NAMES.items()}
FILE_TYPES = {
    "float32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "float16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bfloat16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
"""Type of the matrices, and number of such a file in llama.cpp."""
CHUNK = 1024
"""Number of rows that are converted to float32 at once."""


class Stored(NamedTuple):
    """How a tensor of the file is made."""

    ours: tuple[str, ...]
    """Tensors of ours, of the same shape, that are one below the other in it."""
    kind: GGMLQuantizationType
    order: NDArray[np.int64] | None
    """Number of our row that each row is; None: the same."""


def write(checkpoint: Checkpoint, file: Path, dtype: str) -> str:
    """Write a file; see `lit_lm.interop.export.export`."""
    config, tokenizer = TransformerConfig(**checkpoint.model["net"]), checkpoint.require_tokenizer()
    architecture = architecture_of(config)
    if config.mlp == "gelu_erf":
        raise ValueError("GGUF cannot express mlp gelu_erf; train with mlp gelu, or export to another format")
    if config.qk_norm and config.qkv_bias:  # no part of Qwen3, so only llama.cpp itself reads them, since 2026
        raise ValueError("GGUF cannot express qk_norm with qkv_bias; train without, or export to another format")
    kind, file_type = FILE_TYPES[dtype]
    tensors = _tensors(config, architecture, kind)
    with closing(GGUFWriter(file, architecture)) as writer:
        writer.add_name(model_name(checkpoint.path))
        writer.add_file_type(file_type)
        if dtype == "q8_0":
            writer.add_quantization_version(GGML_QUANT_VERSION)
        _add_shape(writer, config)
        add_tokenizer(writer, tokenizer, config.vocab_size)
        if checkpoint.chat_template is not None:
            writer.add_chat_template(checkpoint.chat_template)
        _write_tensors(writer, tensors, checkpoint.weights)
    backend, data = _read(file)
    check_tokenizer(lambda text: backend.encode(text, add_special_tokens=False).ids, tokenizer)
    difference = _compare(checkpoint, config, tensors, data)
    proof = f"largest difference of a logit {difference:.1e}, read with gguf; same token ids"
    return f"GGUF, architecture {architecture}, {dtype}; {proof}"


def _add_shape(writer: GGUFWriter, config: TransformerConfig) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.feed_forward_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    if config.norm == "layernorm":
        writer.add_layer_norm_eps(config.norm_eps)
    else:
        writer.add_layer_norm_rms_eps(config.norm_eps)
    if config.positions == "rope":
        writer.add_rope_dimension_count(config.head_size)
        writer.add_rope_freq_base(config.rope_theta)


def _tensors(config: TransformerConfig, architecture: Architecture, kind: GGMLQuantizationType) -> dict[str, Stored]:
    """The tensors of the file, by name."""
    names = get_tensor_name_map(ARCHITECTURES[architecture], config.num_layers)
    shapes = {name: value.shape for name, value in skeleton(config).state_dict().items()}
    tensors = {}
    for theirs, part in layout(config, architecture).items():
        name = names.get_name(theirs, (".weight", ".bias"))
        assert name is not None
        shape = shapes.get(part.ours[0], torch.Size([0]))  # a bias of zeros is not among ours
        order = None
        if architecture == "llama" and ".attn_q." in name:
            order = _interleaved(config.num_heads, config.head_size)
        elif architecture == "llama" and ".attn_k." in name:
            order = _interleaved(config.kv_heads, config.head_size)
        tensors[name] = Stored(part.ours, _kind(name, shape, kind), order)
    return tensors


def _interleaved(heads: int, head_size: int) -> NDArray[np.int64]:
    """Order in which dimensions i and i + K/2 of each head become 2i and 2i + 1."""
    return np.arange(heads * head_size).reshape(heads, 2, head_size // 2).swapaxes(1, 2).ravel()


def _kind(name: str, shape: torch.Size, kind: GGMLQuantizationType) -> GGMLQuantizationType:
    """Type of a tensor. As in llama.cpp's own files, norms, biases and positions have no other than float32."""
    if len(shape) == 1 or name.startswith("position_embd"):
        return GGMLQuantizationType.F32
    return GGMLQuantizationType.F16 if shape[-1] % GGML_QUANT_SIZES[kind][0] else kind


def _write_tensors(writer: GGUFWriter, tensors: Mapping[str, Stored], weights: Mapping[str, Tensor]) -> None:
    """Write the file, one tensor at a time."""
    for name, stored in tensors.items():
        ours = [weight_of(each, weights) for each in stored.ours]
        shape = (sum(map(len, ours)), *ours[0].shape[1:])
        elements, size = GGML_QUANT_SIZES[stored.kind]
        writer.add_tensor_info(name, shape, np.dtype("f4"), math.prod(shape) // elements * size, stored.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for stored in tensors.values():
        pieces = [quantize(weight_of(each, weights).float().numpy(), stored.kind) for each in stored.ours]
        data = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        writer.write_tensor_data(data if stored.order is None else data[stored.order])


def _read(file: Path) -> tuple[tokenizers.Tokenizer, dict[str, NDArray[Any]]]:
    """The tokenizer of a file, and its tensors, which are mapped from it. The reader itself takes much memory."""
    reader = GGUFReader(file)
    return read_tokenizer(reader), {tensor.name: tensor.data for tensor in reader.tensors}


def _compare(
    checkpoint: Checkpoint, config: TransformerConfig, tensors: Mapping[str, Stored], data: Mapping[str, NDArray[Any]]
) -> float:
    """Largest difference of a logit between the file and the checkpoint's weights, rounded to the types of the file."""
    places = {ours: (name, number) for name, stored in tensors.items() for number, ours in enumerate(stored.ours)}
    if config.tie_embeddings:
        places["head.weight"] = places["embedding.weight"]

    def in_the_file(ours: str) -> Tensor:
        name, number = places[ours]
        stored = tensors[name]
        rows = np.split(data[name], len(stored.ours))[number]
        return _floats(rows if stored.order is None else rows[np.argsort(stored.order)], stored.kind)

    def rounded(ours: str) -> Tensor:
        kind = tensors[places[ours][0]].kind
        return _floats(quantize(checkpoint.weights[ours].float().numpy(), kind), kind)

    ids = check_ids(checkpoint)
    return largest_difference(logits_of(config, ids, in_the_file), logits_of(config, ids, rounded))


def _floats(data: NDArray[Any], kind: GGMLQuantizationType) -> Tensor:
    """A tensor in float32. `dequantize` would need twice its size for all rows at once."""
    elements, size = GGML_QUANT_SIZES[kind]
    floats = torch.empty(*data.shape[:-1], data.shape[-1] * data.itemsize // size * elements)
    for start in range(0, len(data), CHUNK):
        floats[start : start + CHUNK] = torch.tensor(dequantize(data[start : start + CHUNK], kind))
    return floats
