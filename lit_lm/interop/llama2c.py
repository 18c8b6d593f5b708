"""Models for llama2.c, and from it: a model.bin and a tokenizer.bin, which its programs run.c and runq.c read."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_lm.checkpoint import Checkpoint
from lit_lm.files import write_text
from lit_lm.interop.foreign import ForeignModel
from lit_lm.interop.llama2c_file import PART, TABLES, ModelFile, quantize, write_model
from lit_lm.interop.llama2c_tokenizer import pieces_of, read_pieces, renumbered, run_c_ids, write_pieces
from lit_lm.interop.proof import HARD_TEXTS, check_ids, check_tokenizer, expected_logits, largest_difference
from lit_lm.memory import check_memory
from lit_lm.model.config import TransformerConfig
from lit_lm.model.cost import skeleton
from lit_lm.model.layers import rope_table
from lit_lm.tokenizer.tokenizer import Tokenizer

FIXED = {
    "norm": "rmsnorm",
    "mlp": "swiglu",
    "positions": "rope",
    "rope_theta": 10_000.0,
    "norm_eps": 1e-5,
    "bias": False,
    "qk_norm": False,
}
"""The only values that run.c and runq.c compute with."""
MAX_GROUP_SIZE = 64


def write(checkpoint: Checkpoint, folder: Path, dtype: str) -> str:
    """Write a folder with model.bin, tokenizer.bin and, with the same ids, tokenizer.json."""
    config = TransformerConfig(**checkpoint.model["net"])
    _check(config)
    tokenizer, earlier = renumbered(checkpoint.require_tokenizer(), config.vocab_size)
    pieces = pieces_of(tokenizer, config.vocab_size)
    group_size = math.gcd(MAX_GROUP_SIZE, config.d_model, config.feed_forward_size) if dtype == "int8" else 0
    folder.mkdir()
    write_model(folder / "model.bin", config, checkpoint.weights, torch.tensor(earlier), group_size)
    write_pieces(pieces, folder / "tokenizer.bin")
    write_text(folder / "tokenizer.json", tokenizer.to_json())
    if group_size:
        expected = _logits(config, partial(_round, checkpoint.weights, group_size), check_ids(checkpoint))
    else:
        expected = expected_logits(checkpoint)
    new_ids = torch.tensor(earlier).argsort()  # for each of our ids, the one in the file
    file = ModelFile(folder / "model.bin")
    difference = largest_difference(_logits(config, file.read, new_ids[check_ids(checkpoint)])[..., new_ids], expected)
    read = Tokenizer.load(folder)
    check_tokenizer(lambda text: [earlier[number] for number in read.encode(text)], checkpoint.require_tokenizer())
    pieces = read_pieces(folder / "tokenizer.bin")
    equal = sum(run_c_ids(text, pieces) == read.encode(f" {text}") for text in HARD_TEXTS)
    form = f"int8 in groups of {group_size}, for runq.c" if group_size else "float32, for run.c"
    return (
        f"{form}; largest difference of a logit {difference:.1e}, read with lit-lm; run.c gives the same token ids for "
        f"{equal} of {len(HARD_TEXTS)} difficult texts"
    )


def read(path: Path, tokenizer: Tokenizer | None) -> ForeignModel:
    """Read a model.bin, of any version.

    Raises:
        ValueError: if it is damaged, does not fit into memory, or there is no tokenizer.
    """
    file = ModelFile(path)
    if tokenizer is None:
        raise ValueError(
            f"{path} has no tokenizer; pass --tokenizer with llama2.c's tokenizer.model, or the folder of an export"
        )
    needed = 4 * sum(map(math.prod, file.header.layout.values()))
    check_memory(needed, f"the model in {path}", "use a machine with more")
    shapes = {name: shape for name, shape in file.header.layout.items() if name not in TABLES}
    weights = {name: file.read(name, torch.empty(shape)) for name, shape in shapes.items()}
    weights.setdefault("head.weight", weights["embedding.weight"])
    return ForeignModel(file.header.config, weights, tokenizer)


def _check(config: TransformerConfig) -> None:
    """Refuse a model that run.c cannot compute, by the names of its options."""
    given = {name: getattr(config, name) for name in FIXED}
    problems = [f"{name} {value} (only {FIXED[name]})" for name, value in given.items() if value != FIXED[name]]
    if config.qkv_bias:
        problems.append("qkv_bias True (only False)")
    if config.num_heads * config.head_size != config.d_model:
        problems.append(f"head_dim {config.head_size} (only d_model / num_heads)")
    if problems:
        raise ValueError(f"llama2.c cannot express {', '.join(problems)}; train with what it can, or export to hf")


def _round(weights: Mapping[str, Tensor], group_size: int, name: str, into: Tensor) -> None:
    """Copy a tensor, rounded to the numbers that a file in int8 has."""
    into.copy_(weights[name])
    if into.dim() == 2:
        for part in into.split(max(1, PART // into.shape[1])):  # type: ignore[no-untyped-call]
            values, scales = quantize(part, group_size)
            part.copy_((values * scales[:, None]).view(part.shape))


def _logits(config: TransformerConfig, read: Callable[[str, Tensor], object], ids: Tensor) -> Tensor:
    """Logits (1, T, V) of ids (1, T), with one weight in memory at a time.

    `read` is called with the name of a weight and a tensor to put it into.
    """
    model = skeleton(config).eval()
    model.rope_cos, model.rope_sin = rope_table(config.context_length, config.head_size, config.rope_theta)
    room = torch.empty(max(parameter.numel() for parameter in model.parameters()))

    def load(name: str, shape: torch.Size, module: nn.Module, _: Any) -> None:
        module.weight = nn.Parameter(room[: shape.numel()].view(shape))
        read(name, module.weight)

    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            module.register_forward_pre_hook(partial(load, f"{name}.weight", parameter.shape))
    with torch.no_grad():
        logits: Tensor = model(ids)
    return logits
