"""Cases for fuzz.py with models of other programs, which others may have made."""

import json
import pickle
import shutil
import struct
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml
from fuzz_cases import Case
from fuzz_files import pickled
from fuzz_mutations import MARKER, mutated, odd_file, spoiled

CONFIGS: list[dict[str, Any]] = [
    {"model_type": "mamba"},
    {"model_type": "gpt2"},
    {"model_type": "qwen3"},
    {"model_type": None},
    {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}, "model_type": "own"},
    {"vocab_size": 10**12},
    {"max_position_embeddings": 2**62},
    {"num_hidden_layers": 10**9},
    {"hidden_size": 0},
    {"num_attention_heads": 0},
    {"num_key_value_heads": 3},
    {"rope_parameters": {"rope_type": "yarn"}},
    {"rope_parameters": "x"},
    {"rope_theta": "x", "rope_parameters": None},
    {"rms_norm_eps": "nan"},
    {"tie_word_embeddings": True},
    {"attention_bias": True},
]
"""Changes of config.json, each of which makes the folder wrong."""
INDICES: list[Any] = [
    {"weight_map": {"a": "../../secret.safetensors"}},
    {"weight_map": {"a": "/etc/passwd"}},
    {"weight_map": {"a": "missing.safetensors"}},
    {"weight_map": {"a": ["model.safetensors"]}},
    {"weight_map": {}},
    {"weight_map": []},
    {},
    [],
]


IMPORTS = {
    "nanogpt": ["nanogpt/ckpt.pt", "--tokenizer=nanogpt/meta.pkl"],
    "litgpt": ["litgpt"],
    "llama2c": ["llama2c/model.bin", "--tokenizer=llama2c/tokenizer.json"],
}


def others(rng: Random, number: int, material: Path) -> Case:
    """Files of nanoGPT, LitGPT and llama2.c with other values, tensors, code and bytes."""
    kind = list(IMPORTS)[number % len(IMPORTS)]
    folder, expected = Path(kind), "either"
    shutil.copytree(material / folder, folder)
    args = ["import", *IMPORTS[kind], "--output=made.ckpt"]
    if number % 20 == 0:
        return Case(args, "accept", f"import of {kind}")
    path = rng.choice(sorted(folder.iterdir()))
    torch_file, way = path.suffix in (".pt", ".pth"), rng.random()
    if torch_file and way < 0.3:
        expected, note = "refuse", pickled(rng, path)
    elif torch_file and way < 0.6:
        content = torch.load(path)
        changed, note = mutated(rng, content)
        torch.save(changed, path)
    elif path.suffix == ".yaml" and way < 0.6:
        changed, note = mutated(rng, yaml.safe_load(path.read_text()))
        path.write_text(yaml.safe_dump(changed))
    elif path.suffix == ".pkl" and way < 0.6:
        changed, note = mutated(rng, pickle.loads(path.read_bytes()))
        path.write_bytes(pickle.dumps(changed))
    elif path.name == "model.bin" and way < 0.6:
        content, at = bytearray(path.read_bytes()), 4 * rng.randrange(7)
        content[at : at + 4] = struct.pack("<i", value := rng.choice([0, 1, -1, 2, 3, 2**31 - 1, -(2**31), 10**6]))
        path.write_bytes(content)
        note = f"{value} at byte {at}"
    elif rng.random() < 0.3:
        note = odd_file(rng, path)
    else:
        content, note = spoiled(rng, path.read_bytes())
        path.write_bytes(content)
    return Case(args, expected, f"{path}: {note}"[:100])  # type: ignore[arg-type]


def folders(rng: Random, number: int, material: Path) -> Case:
    """Folders with other configs, tensors, indices, code and bytes."""
    folder = Path("hf")
    shutil.copytree(material / folder, folder)
    args = ["import", "hf", "--output=made.ckpt"]
    if number % 20 == 0:
        return Case(args, "accept", "import")
    way, expected = rng.random(), "either"
    config, index = folder / "config.json", folder / "model.safetensors.index.json"
    if way < 0.2:
        change = rng.choice(CONFIGS)
        config.write_text(json.dumps(json.loads(config.read_text()) | change))
        expected, note = "refuse", str(change)
    elif way < 0.4:
        tree, note = mutated(rng, json.loads(config.read_text()))
        config.write_text(json.dumps(tree))
    elif way < 0.5:
        content = rng.choice(INDICES)
        index.write_text(json.dumps(content))
        expected, note = "refuse", f"index {content}"
    elif way < 0.7:
        expected, note = "refuse", _other_tensors(rng, folder / "model.safetensors")
    elif way < 0.75:
        note = "code beside the weights"
        for name in ("modeling.py", "tokenization.py", "configuration.py", "__init__.py"):
            (folder / name).write_text(f"open({MARKER!r}, 'w')\n")
        config.write_text(json.dumps(json.loads(config.read_text()) | {"auto_map": {"AutoModel": "modeling.Model"}}))
    else:
        path = rng.choice(sorted(folder.iterdir()))
        if rng.random() < 0.3:
            note = odd_file(rng, path)
        else:
            content, note = spoiled(rng, path.read_bytes())
            path.write_bytes(content)
        note = f"{path.name}: {note}"
    return Case(args, expected, note[:100])  # type: ignore[arg-type]


def _other_tensors(rng: Random, path: Path) -> str:
    """Replace, remove or add a tensor; returns what was done."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    name = rng.choice(sorted(tensors))
    what = rng.choice(["removed", "renamed", "added", "int8", "float8", "empty", "scalar", "transposed and cut"])
    tensor = tensors.pop(name)
    if what == "renamed":
        tensors[f"{name}s"] = tensor
    elif what == "added":
        tensors |= {name: tensor, "model.layers.0.self_attn.sinks": torch.ones(2)}
    elif what in ("int8", "float8"):
        tensors[name] = tensor.to(torch.int8 if what == "int8" else torch.float8_e4m3fn)
    elif what != "removed":
        tensors[name] = {"empty": torch.empty(0), "scalar": torch.tensor(1.0)}.get(what, tensor[:1].T.contiguous())
    save_file(tensors, path)
    return f"{name}: {what}"
