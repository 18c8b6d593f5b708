"""Hugging Face folders."""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lit_lm.checkpoint import Checkpoint
from lit_lm.files import write_text
from lit_lm.inference.chat import MAX_TEMPLATE
from lit_lm.inference.sampling import SamplingConfig
from lit_lm.interop.architectures import (
    CLASSES,
    Architecture,
    Part,
    architecture_of,
    from_config,
    layout,
    to_config,
    to_theirs,
    weight_of,
)
from lit_lm.interop.foreign import INDEX, ForeignModel, assemble, in_folder, read_json
from lit_lm.interop.proof import (
    check_ids,
    check_tokenizer,
    computing_in_float32,
    expected_logits,
    largest_difference,
    logits_of,
)
from lit_lm.model.config import TransformerConfig
from lit_lm.runs import model_name
from lit_lm.tokenizer.tokenizer import Tokenizer

MAX_SHARD_BYTES = 5 * 10**9


def write(checkpoint: Checkpoint, folder: Path, dtype: str) -> str:
    """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` of `transformers` load."""
    tokenizer, shape = checkpoint.require_tokenizer(), TransformerConfig(**checkpoint.model["net"])
    architecture = architecture_of(shape)
    folder.mkdir()
    write_texts(folder, to_config(shape, architecture, tokenizer.end_id, dtype), checkpoint)
    _write_shards(folder, layout(shape, architecture), checkpoint.weights, getattr(torch, dtype))
    expected = expected_logits(checkpoint, getattr(torch, dtype))
    reader, compare = ("transformers", _with_transformers) if find_spec("transformers") else ("lit-lm", _with_lit_lm)
    difference = compare(folder, checkpoint, expected)
    proof = f"largest difference of a logit {difference:.1e}, read with {reader}; same token ids"
    write_text(folder / "README.md", _card(checkpoint, architecture, dtype, proof))
    return f"{CLASSES[architecture]}, {dtype}; {proof}"


def read(folder: Path, tokenizer: Tokenizer | None = None) -> ForeignModel:
    """Read a folder, with the weights in float32; `tokenizer` replaces its own.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the architecture is unknown or has parts that a Transformer lacks, or a file is damaged.
    """
    content = read_json(folder / "config.json")
    config = from_config(content)
    architecture: Architecture = "llama" if content["model_type"] == "mistral" else content["model_type"]
    weights = assemble(config, layout(config, architecture), in_folder(folder))
    return ForeignModel(config, weights, tokenizer or Tokenizer.load(folder), _chat_template(folder))


def _chat_template(folder: Path) -> str | None:
    """The folder's default template for chats, if it has one."""
    file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.is_file() and file.stat().st_size <= MAX_TEMPLATE:
        return file.read_text(encoding="utf-8", errors="replace")
    template = read_json(config).get("chat_template") if config.is_file() else None
    if isinstance(template, list):  # of named ones
        defaults = [each for each in template if isinstance(each, dict) and each.get("name") == "default"]
        template = defaults[0].get("template") if defaults else None
    return template if isinstance(template, str) and len(template) <= MAX_TEMPLATE else None


def write_texts(folder: Path, config: dict[str, Any], checkpoint: Checkpoint) -> None:
    """Write the files besides the weights: `config` as config.json, those of the tokenizer, and generation_config.json.

    Raises:
        ValueError: if the tokenizer has no tokenizer.json.
    """
    tokenizer = checkpoint.require_tokenizer()
    if type(tokenizer) is not Tokenizer:
        raise ValueError("a SentencePiece tokenizer has no tokenizer.json; Hugging Face folders need one")
    for name, content in {
        "config.json": config,
        "generation_config.json": _generation_config(tokenizer),
        "tokenizer_config.json": _tokenizer_config(checkpoint),
    }.items():
        write_text(folder / name, json.dumps(content, indent=2) + "\n")
    write_text(folder / "tokenizer.json", tokenizer.to_json())


def _with_transformers(folder: Path, checkpoint: Checkpoint, expected: Tensor) -> float:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # a text may be longer than the context
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    check_tokenizer(
        lambda text: tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"],
        checkpoint.require_tokenizer(),
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    model.train(False)
    with torch.no_grad(), computing_in_float32(model):
        return largest_difference(model(check_ids(checkpoint)).logits, expected)


def _with_lit_lm(folder: Path, checkpoint: Checkpoint, expected: Tensor) -> float:
    config, weights, tokenizer, _ = read(folder)
    check_tokenizer(tokenizer.encode, checkpoint.require_tokenizer())
    return largest_difference(logits_of(config, check_ids(checkpoint), weights.__getitem__), expected)


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


def _tokenizer_config(checkpoint: Checkpoint) -> dict[str, Any]:
    template = checkpoint.chat_template
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",  # other classes replace parts of tokenizer.json
        **dict.fromkeys(("bos_token", "eos_token", "pad_token"), checkpoint.require_tokenizer().end_token),
        "model_max_length": checkpoint.model["net"]["context_length"],
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": template is None,  # the name of a special token is text, but not in a chat
        **({} if template is None else {"chat_template": template}),
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

# {model_name(checkpoint.path)}

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
