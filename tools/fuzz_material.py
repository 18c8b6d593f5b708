"""Right files for fuzz.py, made by the commands themselves, and the options of all commands."""

import base64
import gzip
import inspect
import json
import pickle
import shutil
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from fuzz_cases import COMMANDS, NET, command


def make_material(material: Path) -> None:
    """Make right files with the commands, and list the options of the commands. The present folder is `material`."""
    from lit_lm.__main__ import main

    animals = ["cat", "dog", "owl", "fox", "hen", "pig"]
    stories = [f"The {a} saw a {b}. The {b} ran home.\n{n} days later they met." for n, a, b in zip(
        range(60), animals * 10, (animals[1:] + animals[:1]) * 10, strict=True)]  # fmt: skip
    Path("corpus.txt").write_text("<|endoftext|>".join(stories), encoding="utf-8")
    # a checkpoint with the state of a timer would end resumed runs at once
    main([arg for arg in command("fit", material) if "max_time" not in arg])
    shutil.copy("logs/run/version_0/checkpoints/last.ckpt", "tiny.ckpt")
    main(["generate", "Once", "--ckpt_path=tiny.ckpt", "--max_new_tokens=1"])
    main([*command("prepare", material), "--output=store"])
    for kind in ("bpe", "unigram", "char"):
        main([*command("tokenizer train", material), f"--tokenizer_type={kind}", f"--output=tokenizer.{kind}.json"])
    with open("ids.txt", "w") as file, redirect_stdout(file):
        main(["tokenizer", "encode", "tokenizer.bpe.json", "corpus.txt"])
    for kind in ("hf", "llama2c"):
        main(["export", "--ckpt_path=tiny.ckpt", f"--to={kind}", f"--output={kind}"])
    _make_nanogpt()
    _make_litgpt()
    _make_formats(json.loads(Path("tokenizer.bpe.json").read_text(encoding="utf-8"))["model"])
    _make_data(stories, [int(number) for number in Path("ids.txt").read_text().split()])
    Path("options.json").write_text(json.dumps(_options()))
    Path("done").touch()


def _make_formats(model: dict[str, Any]) -> None:
    """Write a BPE model in the other formats of tokenizers; SentencePiece only if it is installed."""
    vocab: dict[str, int] = model["vocab"]
    Path("gpt2").mkdir()
    Path("gpt2/vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    Path("gpt2/merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): byte for byte in printing}
    letters |= {chr(256 + i): byte for i, byte in enumerate(byte for byte in range(256) if byte not in printing)}
    ordered = sorted(vocab.keys() - {"<|endoftext|>"}, key=vocab.__getitem__)
    tokens = [bytes(letters[letter] for letter in token) for token in ordered]
    ranks = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    Path("tokenizer.tiktoken").write_text("".join(ranks))
    with suppress(ImportError):
        import sentencepiece

        sentencepiece.SentencePieceTrainer.train(
            input="corpus.txt", model_prefix="tokenizer", vocab_size=100, hard_vocab_limit=False, minloglevel=2
        )
        Path("tokenizer.vocab").unlink()


def _make_nanogpt() -> None:
    """Write a checkpoint as nanoGPT's train.py does, and the meta.pkl of a tokenizer of characters."""
    import torch

    letters, wide, context = "abcdefgh .", NET["d_model"], NET["context_length"]
    shapes = {"wte": (len(letters), wide), "wpe": (context, wide), "ln_f": (wide,), "h.0.ln_1": (wide,),
              "h.0.attn.c_attn": (3 * wide, wide), "h.0.attn.c_proj": (wide, wide), "h.0.ln_2": (wide,),
              "h.0.mlp.c_fc": (4 * wide, wide), "h.0.mlp.c_proj": (wide, 4 * wide)}  # fmt: skip
    state = {f"transformer.{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    state["lm_head.weight"] = state["transformer.wte.weight"]
    shape = {"n_layer": 1, "n_head": 2, "n_embd": wide, "block_size": context, "bias": False,
             "vocab_size": len(letters), "dropout": 0.0}  # fmt: skip
    Path("nanogpt").mkdir()
    torch.save({"model": state, "optimizer": {}, "model_args": shape, "iter_num": 3}, "nanogpt/ckpt.pt")
    meta = {"vocab_size": len(letters), "itos": dict(enumerate(letters)), "stoi": {c: n for n, c in enumerate(letters)}}
    Path("nanogpt/meta.pkl").write_bytes(pickle.dumps(meta))


def _make_litgpt() -> None:
    """Write a checkpoint folder as LitGPT does."""
    import torch
    import yaml

    wide, size = NET["d_model"], NET["vocab_size"]
    shapes = {"transformer.wte": (size, wide), "transformer.ln_f": (wide,), "lm_head": (size, wide),
              "transformer.h.0.norm_1": (wide,), "transformer.h.0.attn.qkv": (3 * wide, wide),
              "transformer.h.0.attn.proj": (wide, wide), "transformer.h.0.norm_2": (wide,),
              "transformer.h.0.mlp.fc_1": (48, wide), "transformer.h.0.mlp.fc_2": (48, wide),
              "transformer.h.0.mlp.proj": (wide, 48)}  # fmt: skip
    config = {"block_size": NET["context_length"], "n_layer": 1, "n_embd": wide, "n_head": 2, "n_query_groups": 2,
              "padded_vocab_size": size, "intermediate_size": 48, "norm_class_name": "RMSNorm", "norm_eps": 1e-5,
              "mlp_class_name": "LLaMAMLP", "bias": False, "rotary_percentage": 1.0, "rope_base": 10000,
              "parallel_residual": False}  # fmt: skip
    Path("litgpt").mkdir()
    torch.save({f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}, "litgpt/lit_model.pth")
    Path("litgpt/model_config.yaml").write_text(yaml.safe_dump(config))
    shutil.copy("tokenizer.bpe.json", "litgpt/tokenizer.json")


def _make_data(documents: list[str], ids: list[int]) -> None:
    """Write documents and ids as files of all types."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import zstandard

    text = "<|endoftext|>".join(documents).encode()
    rows = "".join(json.dumps({"text": document}) + "\n" for document in documents).encode()
    for name, content in (("txt", text), ("jsonl", rows)):
        Path(f"data.{name}").write_bytes(content)
        Path(f"data.{name}.gz").write_bytes(gzip.compress(content))
        Path(f"data.{name}.zst").write_bytes(zstandard.compress(content))
    pq.write_table(pa.table({"text": documents}), "data.parquet")
    np.save("data.npy", np.array(ids, np.uint16))
    Path("data.bin").write_bytes(np.array(ids, np.uint16).tobytes())


def _options() -> list[tuple[str, str, str]]:
    """Command, name and type of each option of all commands; the types of some are not known."""
    from lit_lm import optim
    from lit_lm.cli.completion_script import actions, parsers

    known = parsers()
    found = []
    for line in (*COMMANDS, "serve"):
        name, _, part = line.partition(" ")
        if (parser := known.get(name)) is None:  # it has no options
            continue
        if name == "tokenizer":
            (group,) = [action for action in parser._actions if isinstance(action.choices, dict)]
            parser = group.choices[part]
        options = [(action.option_strings[-1], _kind(action)) for action in actions(parser) if action.option_strings]
        names = {option for option, _ in options}
        for section, kind in (("optimizer", optim.Muon), ("schedule", optim.WarmupStableDecay)):
            if f"--model.{section}" in names:
                for parameter in list(inspect.signature(kind).parameters.values())[1:]:
                    own = getattr(parameter.annotation, "__name__", "unknown")
                    options.append((f"--model.{section}.{parameter.name}", own))
        found += [(line, *option) for option in options if not option[0].endswith((".help", "--help"))]
    return found


def _kind(action: Any) -> str:
    """The type of an option, as the keys of fuzz_cases.NEVER have it."""
    hint = getattr(action, "_typehint", None) or {"N": int | None, "X": float, "{true,false}": bool}.get(action.metavar)
    if choices := action.choices or (get_args(hint) if get_origin(hint) is Literal else None):
        return f"{{{','.join(map(str, choices))}}}"
    names = {int: "int", float: "float", bool: "bool", int | None: "int | null", bool | None: "bool | null"}
    return names.get(hint, "unknown")
