"""Checkpoints of nanoGPT (ckpt.pt). Such a file has no tokenizer."""

from dataclasses import replace
from pathlib import Path

from lit_lm.checkpoint import load_data
from lit_lm.checkpoint_schema import misfits
from lit_lm.interop.architectures import MAX_SHOWN, SIZE, layout
from lit_lm.interop.foreign import ForeignModel, assemble, in_file
from lit_lm.model.config import TransformerConfig
from lit_lm.tokenizer.tokenizer import Tokenizer

SCHEMA = {
    "model_args": {
        "n_layer": SIZE,
        "n_head": SIZE,
        "n_embd": SIZE,
        "block_size": SIZE,
        "vocab_size": SIZE,
        "bias": bool,
        "dropout?": int | float,
    }
}
"""The part of a checkpoint that is read besides the weights, in the terms of `checkpoint_schema.misfits`."""


def read(path: Path, tokenizer: Tokenizer | None) -> ForeignModel:
    """Read a checkpoint.

    Raises:
        ValueError: if it is damaged or has other parts than nanoGPT's model, or there is no tokenizer.
    """
    content = load_data(path)
    if not isinstance(content, dict) or not {"model", "model_args"} <= content.keys():
        raise ValueError(f"{path} was not written by nanoGPT: it has no model and model_args")
    if found := list(misfits({"model_args": content["model_args"]}, SCHEMA)):
        raise ValueError(f"{path} is damaged or was changed: {'; '.join(found[:MAX_SHOWN])}")
    if tokenizer is None:
        raise ValueError(
            f"{path} has no tokenizer; pass --tokenizer with that of its data: meta.pkl beside train.bin, or a folder "
            "with GPT-2's vocab.json and merges.txt"
        )
    shape = content["model_args"]
    config = TransformerConfig(
        vocab_size=shape["vocab_size"],
        context_length=shape["block_size"],
        d_model=shape["n_embd"],
        num_layers=shape["n_layer"],
        num_heads=shape["n_head"],
        norm="layernorm",
        mlp="gelu_erf",
        positions="learned",
        bias=shape["bias"],
        dropout=float(shape.get("dropout", 0.0)),
        tie_embeddings=True,
    )
    theirs = in_file(path, content["model"])
    # the names of GPT-2, but matrices of Linear and not of Conv1D, and no biases that are not there
    parts = {
        name: replace(part, transposed=False)
        for name, part in layout(config, "gpt2").items()
        if config.bias or not name.endswith(".bias")
    }
    return ForeignModel(config, assemble(config, parts, theirs), tokenizer)
