"""Export a checkpoint to a Hugging Face folder, and import one."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_lm.checkpoint import Checkpoint, weights_content, write_checkpoint
from lit_lm.files import UNFINISHED, write_text
from lit_lm.inference.sampling import SamplingConfig
from lit_lm.interop.huggingface import (
    CLASSES,
    Part,
    architecture_of,
    layout,
    read_folder,
    to_config,
    to_theirs,
    weight_of,
)
from lit_lm.interop.tensors import INDEX
from lit_lm.model.config import TransformerConfig
from lit_lm.model.transformer import Transformer
from lit_lm.tokenizer.tokenizer import Tokenizer

MAX_SHARD_BYTES = 5 * 10**9
CHECK_TEXT = (
    'Once upon a time, there was a little girl. 从前有一只小狗。 She said: "It\'s 3.14!"\n\n  def f(x): return x\n' * 4
)
"""Text whose logits are compared."""
HARD_TEXTS = (
    CHECK_TEXT,
    "  two  spaces\t\ttabs\n\n\nlines\r\n",
    "e\u0301 and \u00e9, \ufeff and \u200b, ﬁ and ½",
    "👩‍👩‍👧‍👦 🏳️‍🌈 العربية हिन्दी ไทย",
    "<|endoftext|> </s> [UNK] <0x0A> \u2581",
)
"""Texts whose token ids are compared."""
TOLERANCE = 1e-3
"""Largest difference of a logit, in float32, that rounding explains."""


def export(checkpoint: Checkpoint, output: Path, dtype: str, *, overwrite: bool = False) -> Iterator[str]:
    """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` of `transformers` load; yields lines to print.

    The folder appears under its name when it is complete and has been compared with the model.

    Args:
        checkpoint: Model and tokenizer.
        output: Folder to write.
        dtype: Name of the data type of the weights: float32, bfloat16 or float16.
        overwrite: Whether to replace what is at `output`.

    Raises:
        ValueError: if the model cannot be expressed, the folder exists, or it does not compute the same.
    """
    tokenizer, shape = checkpoint.require_tokenizer(), TransformerConfig(**checkpoint.model["net"])
    architecture = architecture_of(shape)
    if type(tokenizer) is not Tokenizer:
        raise ValueError("a SentencePiece tokenizer has no tokenizer.json; Hugging Face folders need one")
    with _whole_folder(output, overwrite=overwrite) as folder:
        _write_shards(folder, layout(shape, architecture), checkpoint.weights, getattr(torch, dtype))
        config = to_config(shape, architecture, tokenizer.end_id, dtype)
        for name, content in {
            "config.json": config,
            "generation_config.json": _generation_config(tokenizer),
            "tokenizer_config.json": _tokenizer_config(tokenizer, shape.context_length),
        }.items():
            write_text(folder / name, json.dumps(content, indent=2) + "\n")
        write_text(folder / "tokenizer.json", tokenizer.to_json())
        reader, difference = compare(folder, checkpoint, getattr(torch, dtype))
        proof = f"largest difference of a logit {difference:.1e}, read with {reader}; same token ids"
        write_text(folder / "README.md", _card(checkpoint, architecture, dtype, proof))
    yield f"{output}: {CLASSES[architecture]}, {dtype}; {proof}"


def export_weights(checkpoint: Checkpoint, output: Path, dtype: str, *, overwrite: bool = False) -> Iterator[str]:
    """Write a folder with the weights under lit-lm's names, the shape and the tokenizer; yields lines to print.

    Args are those of `export`.

    Raises:
        ValueError: if the folder exists.
    """
    shape = TransformerConfig(**checkpoint.model["net"])
    tied = {"head.weight"} if shape.tie_embeddings else set()
    kept = checkpoint.weights.items()
    weights = {name: weight.to(getattr(torch, dtype)).contiguous() for name, weight in kept if name not in tied}
    with _whole_folder(output, overwrite=overwrite) as folder:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        write_text(folder / "config.json", json.dumps(asdict(shape), indent=2) + "\n")
        write_text(folder / "tokenizer.json", checkpoint.require_tokenizer().to_json())
        read = load_file(folder / "model.safetensors")
        if read.keys() != weights.keys() or not all(torch.equal(read[name], weights[name]) for name in weights):
            raise ValueError(f"{output} does not contain the weights: the disk may be damaged")
    yield f"{output}: {len(weights)} tensors, {dtype}, equal bit by bit"


def import_folder(folder: Path, output: Path, *, overwrite: bool = False) -> Iterator[str]:
    """Write a checkpoint from a Hugging Face folder; yields lines to print.

    Raises:
        FileNotFoundError, ValueError: if the folder cannot be read, or the checkpoint exists.
    """
    if output.exists() and not overwrite:
        raise ValueError(f"{output} exists; pass --overwrite to replace it")
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; download the model first")
    config, weights = read_folder(folder)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{folder} has a tokenizer of {tokenizer.vocab_size} tokens, but a vocab_size of {config.vocab_size}"
        )
    write_checkpoint(weights_content(config, weights, tokenizer), output)
    count = sum(tensor.numel() for tensor in {id(tensor): tensor for tensor in weights.values()}.values())
    yield f"{output}: {count:,} parameters, context {config.context_length:,}, {tokenizer.vocab_size:,} tokens"


def compare(folder: Path, checkpoint: Checkpoint, dtype: torch.dtype) -> tuple[str, float]:
    """Compare a folder with the checkpoint of which it was made; returns the reader, and the largest difference of a
    logit.

    The checkpoint's weights are rounded to `dtype`, too. Read with `transformers` if it is installed, else as for an
    import.

    Raises:
        ValueError: if the folder does not compute the same.
    """
    tokenizer = checkpoint.require_tokenizer()
    model = checkpoint.transformer()
    ids = torch.tensor([(tokenizer.encode(CHECK_TEXT) or [tokenizer.end_id])[: model.config.context_length]])
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
        expected = model(ids)
    del model  # before the other one is read: one copy of the weights at a time
    reader = "transformers" if find_spec("transformers") else "lit-lm"
    read = _with_transformers if reader == "transformers" else _with_lit_lm
    with torch.inference_mode():
        logits, encoded = read(folder, ids)
        difference = float((logits - expected).abs().max())
    if not difference < TOLERANCE:
        raise ValueError(f"the exported model computes something else: a logit differs by {difference:.1e}")
    for text, theirs in zip(HARD_TEXTS, encoded, strict=True):
        if theirs != tokenizer.encode(text):
            raise ValueError(f"the exported tokenizer gives other ids for {text[:40]!r}")
    return reader, difference


def _with_transformers(folder: Path, ids: Tensor) -> tuple[Tensor, list[list[int]]]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # a text may be longer than the context
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model.train(False)
    return model(ids).logits, [tokenizer(text, add_special_tokens=False)["input_ids"] for text in HARD_TEXTS]


def _with_lit_lm(folder: Path, ids: Tensor) -> tuple[Tensor, list[list[int]]]:
    config, weights = read_folder(folder)
    model = Transformer(config).eval()
    model.load_state_dict(weights)
    tokenizer = Tokenizer.load(folder)
    return model(ids), [tokenizer.encode(text) for text in HARD_TEXTS]


@contextmanager
def _whole_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to write to that gets its name when the block ends; after an error, nothing remains.

    Raises:
        ValueError: if there is something at `path`, and it is not to be overwritten.
    """
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists; pass --overwrite to replace it")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}{UNFINISHED}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        yield unfinished
        if path.is_dir():
            shutil.rmtree(path)
        unfinished.rename(path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _write_shards(folder: Path, parts: dict[str, Part], weights: dict[str, Tensor], dtype: torch.dtype) -> None:
    shards: list[list[str]] = [[]]
    size = 0
    for name, part in parts.items():
        needed = sum(weight_of(ours, weights).numel() for ours in part.ours) * dtype.itemsize
        if shards[-1] and size + needed > MAX_SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += needed
    files: dict[str, str] = {}
    total = 0
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        tensors = {name: to_theirs(parts[name], weights, dtype) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(names, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) > 1:
        content = {"metadata": {"total_size": total}, "weight_map": files}
        write_text(folder / INDEX, json.dumps(content, indent=2) + "\n")


def _generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.end_id)
    return ids | {"do_sample": True, "temperature": SamplingConfig.temperature, "top_p": SamplingConfig.top_p}


def _tokenizer_config(tokenizer: Tokenizer, context_length: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",  # other classes replace parts of tokenizer.json
        **dict.fromkeys(("bos_token", "eos_token", "pad_token"), tokenizer.end_token),
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # the name of a special token in a text is text
    }


def _card(checkpoint: Checkpoint, architecture: str, dtype: str, proof: str) -> str:
    """The model card."""
    model, data = checkpoint.model, checkpoint.data
    best = checkpoint.content.get("callbacks", {}).get("CheckpointCallback", {})
    rows: Sequence[tuple[str, Any]] = [
        ("architecture", f"{CLASSES[architecture]}, {dtype}"),  # type: ignore[index]
        ("shape", ", ".join(f"{name} {value}" for name, value in model["net"].items() if value not in (None, False))),
        ("data", data.get("source", "not recorded")),
        ("steps", f"{checkpoint.step:,} of {data.get('batch_size', '?')} x {model['net']['context_length']} tokens"),
        ("optimizer", json.dumps(model.get("optimizer"))),
        ("schedule", json.dumps(model.get("schedule"))),
        ("lowest validation loss", f"{best['best_loss']:.4f} (step {best['best_step']:,})" if best else "not recorded"),
        ("checked", proof),
    ]
    table = "\n".join(f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in rows)
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [lit-lm]
---

# {checkpoint.path.resolve().parent.parent.parent.name or "Model"}

A small language model, trained from scratch with lit-lm.

| | |
|---|---|
{table}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH")
model = AutoModelForCausalLM.from_pretrained("PATH")
ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=100)[0]))
```
"""
