"""The weights under lit-lm's own names, for one's own code."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lit_lm.checkpoint import Checkpoint
from lit_lm.files import write_text
from lit_lm.model.config import TransformerConfig


def write(checkpoint: Checkpoint, folder: Path, dtype: str) -> str:
    """Write the weights, the shape and the tokenizer; see `lit_lm.interop.export.export`."""
    shape = TransformerConfig(**checkpoint.model["net"])
    tied = {"head.weight"} if shape.tie_embeddings else set()
    kept = checkpoint.weights.items()
    weights = {name: weight.to(getattr(torch, dtype)).contiguous() for name, weight in kept if name not in tied}
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_text(folder / "config.json", json.dumps(asdict(shape), indent=2) + "\n")
    write_text(folder / "tokenizer.json", checkpoint.require_tokenizer().to_json())
    read = load_file(folder / "model.safetensors")
    if read.keys() != weights.keys() or not all(torch.equal(read[name], weights[name]) for name in weights):
        raise ValueError("the exported weights are not those of the checkpoint: the disk may be damaged")
    return f"{len(weights)} tensors, {dtype}, equal bit by bit"
