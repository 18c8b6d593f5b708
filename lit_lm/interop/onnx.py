"""Graphs for ONNX Runtime.

One graph serves both prompts and single tokens. The keys and values that it returns, present.N.key and present.N.value
for block N, are past_key_values.N.key and past_key_values.N.value of the next call; a prompt has a past of length 0.
These are the inputs and outputs of optimum's exporter, which onnxruntime-based programs expect. attention_mask and
position_ids are among them because such programs pad the shorter prompts of a batch on the left.

Shapes: B batch, P tokens of the past, T new tokens, S = P + T, G key/value heads, K head size, V vocabulary.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn

from lit_lm.checkpoint import Checkpoint
from lit_lm.interop.architectures import architecture_of, to_config
from lit_lm.interop.hf import write_texts
from lit_lm.interop.proof import check_ids, check_tokenizer, expected_logits, largest_difference
from lit_lm.model.config import TransformerConfig
from lit_lm.model.cost import skeleton
from lit_lm.model.layers import causal_mask, rope_table
from lit_lm.model.transformer import KVCache, LayerCache, Transformer
from lit_lm.tokenizer.tokenizer import Tokenizer

EXAMPLE_SIZE = 2
"""Size of the batch, the past and the new tokens for which the graph is traced; torch.export would fix 0 and 1."""
STEPS = 8
"""Number of tokens that the check computes one by one, after a prompt."""


def write(checkpoint: Checkpoint, folder: Path, dtype: str) -> str:
    """Write model.onnx and model.onnx_data, which has the weights, and the other files of a Hugging Face folder.

    If `transformers` has no architecture that computes the same, config.json has the shape of the Transformer.

    Raises:
        ValueError: if the tokenizer has no tokenizer.json, or the context is shorter than the example that is traced.
    """
    tokenizer, shape = checkpoint.require_tokenizer(), TransformerConfig(**checkpoint.model["net"])
    if shape.context_length < 2 * EXAMPLE_SIZE:
        raise ValueError(f"context_length is {shape.context_length}; for ONNX, it must be at least {2 * EXAMPLE_SIZE}")
    try:
        config = to_config(shape, architecture_of(shape), tokenizer.end_id, dtype)
    except ValueError:
        config = asdict(shape)
    folder.mkdir()
    write_texts(folder, config, checkpoint)
    opset = _write_graph(_mapped(checkpoint), folder / "model.onnx")
    logits = _with_onnxruntime(folder / "model.onnx", shape, check_ids(checkpoint))
    difference = largest_difference(logits, expected_logits(checkpoint))
    check_tokenizer(Tokenizer.load(folder).encode, tokenizer)
    return f"ONNX, opset {opset}; largest difference of a logit {difference:.1e}, read with onnxruntime; same token ids"


def _mapped(checkpoint: Checkpoint) -> Transformer:
    """The model in evaluation mode, with weights that stay in the file from which they are mapped."""
    config = TransformerConfig(**checkpoint.model["net"])
    model = skeleton(config).eval()
    model.load_state_dict({name: weight.float() for name, weight in checkpoint.weights.items()}, assign=True)
    if config.tie_embeddings:
        model.head.weight = model.embedding.weight
    if config.positions == "rope":
        model.rope_cos, model.rope_sin = rope_table(config.context_length, config.head_size, config.rope_theta)
    return model


class _GrowingLayer(LayerCache):
    """Keys and values (B, G, P, K) of the past; those of the new tokens are added in new tensors."""

    present: tuple[Tensor, Tensor]
    """Keys and values (B, G, S, K) of all tokens."""

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.present = torch.cat([self.keys, k], dim=2), torch.cat([self.values, v], dim=2)
        return self.present


class _GrowingCache(KVCache):
    """The past, given as tensors: nothing is written in place, as a graph requires."""

    def __init__(self, past: Sequence[Tensor], attention_mask: Tensor, position_ids: Tensor) -> None:
        self.attention_mask = attention_mask
        self.lengths = [past[0].shape[2]]
        self.layers = [
            _GrowingLayer(keys, values, rows=position_ids, positions=position_ids, end=attention_mask.shape[1])
            for keys, values in zip(past[::2], past[1::2], strict=True)
        ]

    def extend(self, num_tokens: int) -> tuple[list[LayerCache], Tensor | None]:
        (past,) = self.lengths
        columns = torch.arange(past, past + num_tokens)  # of the mask; padding has columns, but no positions
        mask = causal_mask(columns, past + num_tokens) & self.attention_mask[:, None, None].bool()  # (B, 1, T, S)
        return list(self.layers), mask


class _Graph(nn.Module):
    """A Transformer with the inputs and outputs of the graph."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """Logits (B, T, V), and keys and values (B, G, S, K) of each block.

        Args:
            input_ids: Ids (B, T) of the new tokens.
            attention_mask: 0 (B, S) for padding, 1 for tokens of the past and new ones.
            position_ids: Positions (B, T) of the new tokens.
            past: Keys and values (B, G, P, K) of each block.
        """
        cache = _GrowingCache(past, attention_mask, position_ids)
        logits = self.model(input_ids, cache)
        return logits, *(tensor for layer in cache.layers for tensor in layer.present)


def _write_graph(model: Transformer, path: Path) -> int:
    """Write the graph, with the weights beside it; returns the version of its operators."""
    config = model.config
    parts = [f"{block}.{kind}" for block in range(config.num_layers) for kind in ("key", "value")]
    size = EXAMPLE_SIZE
    ids = torch.zeros(size, size, dtype=torch.long)
    mask = torch.ones(size, 2 * size, dtype=torch.long)
    past = [torch.zeros(size, config.kv_heads, size, config.head_size) for _ in parts]
    tokens = {0: "batch_size", 1: "sequence_length"}
    all_tokens = {0: "batch_size", 1: "past_sequence_length + sequence_length"}
    past_tokens = {0: "batch_size", 2: "past_sequence_length"}
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            _Graph(model).eval(),
            (ids, mask, ids.clone(), past),  # one tensor twice would be one input
            input_names=["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{part}" for part in parts)],
            output_names=["logits", *(f"present.{part}" for part in parts)],
            dynamic_shapes=(tokens, all_tokens, tokens, [past_tokens] * len(parts)),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)  # where each operator is from: lines and paths of Python code
    onnx_ir.save(program.model, path, external_data=f"{path.name}_data")
    return int(program.model.opset_imports[""])


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings, which are about its own parts."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _with_onnxruntime(graph: Path, config: TransformerConfig, ids: Tensor) -> Tensor:
    """Logits (1, T, V) of ids (1, T): of all but the last ones at once, then of one after the other."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_prepacking", "1")  # it would copy the weights, which are mapped
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    num_tokens = ids.shape[1]
    start = max(1, num_tokens - STEPS)
    past = [np.zeros((1, config.kv_heads, 0, config.head_size), np.float32)] * (2 * config.num_layers)
    logits = []
    for first, end in [(0, start), *((position, position + 1) for position in range(start, num_tokens))]:
        inputs = [ids[:, first:end].numpy(), np.ones((1, end), np.int64), np.arange(first, end)[None], *past]
        new, *past = session.run(None, dict(zip(names, inputs, strict=True)))
        logits.append(torch.from_numpy(new))
    return torch.cat(logits, dim=1)
