"""Cases for fuzz.py with files that others may have made: checkpoints, stores, tokenizers."""

import json
import pickle
import shutil
import struct
import sys
import zipfile
from pathlib import Path
from random import Random
from typing import Any

from fuzz_cases import Case, Expected, command
from fuzz_mutations import MARKER, mutated, odd_file, odd_text, spoiled

OPTIMIZER = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("os.system", {"command": f"touch {MARKER}"}),
    ("subprocess.Popen", {"args": ["touch", MARKER]}),
    ("subprocess.run", {"args": ["touch", MARKER]}),
    ("builtins.open", {"file": MARKER, "mode": "w"}),
    ("builtins.exec", {"source": f"open('{MARKER}', 'w')"}),
    ("pathlib.Path", {}),
    ("os.mkdir", {"path": MARKER}),
    ("torch.save", {"obj": 1, "f": MARKER}),
    ("torch.os.system", {"command": f"touch {MARKER}"}),
    ("torch.os._exit", {"status": 0}),
    ("torch.hub.load", {"repo_or_dir": MARKER, "model": "x", "source": "local"}),
    ("torch.distributed.launcher.api.elastic_launch", {"entrypoint": "touch", "config": None}),
    ("torch.utils.cpp_extension.load_inline", {"name": "x", "cpp_sources": ""}),
    ("torch.optim.swa_utils.SWALR", {"swa_lr": 0.1}),
    ("torch.optim.lr_scheduler.LambdaLR", {"lr_lambda": {"class_path": "os.system", "init_args": {"command": "x"}}}),
    ("torch.optim.lr_scheduler.SequentialLR", {"schedulers": [OPTIMIZER], "milestones": []}),
    ("torch.optim.LBFGS", {"lr": 1}),
    ("lit_lm.files.write_text", {"path": MARKER, "text": ""}),
    ("lightning.pytorch.loggers.CSVLogger", {"save_dir": MARKER}),
]
"""Class paths that a checkpoint must not bring, with arguments that leave a mark or end the process."""


def checkpoints(rng: Random, number: int, material: Path) -> Case:
    """Checkpoints with other values, tensors, classes, pickles and bytes."""
    import torch

    name = rng.choice(["generate", "generate", "predict", "validate", "test", "fit", "fit", "data info", "prepare"])
    args = {
        "generate": ["generate", "Once", "--max_new_tokens=4"],
        "predict": ["predict", "--prompt=Once", "--max_new_tokens=4", "--trainer.accelerator=cpu"],
        "fit": ["fit", "--trainer.max_steps=3", "--trainer.max_time=00:00:00:05", "--trainer.accelerator=cpu"],
    }.get(name, name.split())
    args = [*args, "--ckpt_path=tiny.ckpt"]
    path = Path("tiny.ckpt")
    shutil.copy(material / path, path)
    if number % 20 == 0:
        return Case(args, "accept", name)
    expected: Expected = "refuse" if name == "fit" else "either"
    way = rng.random()
    if way < 0.12:
        content, note = spoiled(rng, path.read_bytes())
        path.write_bytes(content)
        return Case(args, note=note)
    if way < 0.17:
        return Case(args, "refuse", odd_file(rng, path))
    if way < 0.22:
        digest = Path("tiny.ckpt.sha256")
        digest.write_text(rng.choice(["", f"{'0' * 64}  tiny.ckpt\n", "é", "\0" * 100, "x" * 1_000_000]))
        return Case(args, note=f"digest {odd_file(rng, digest) if rng.random() < 0.6 else 'spoiled'}")
    if way < 0.3:
        return Case(args, "refuse", pickled(rng, path))
    if way < 0.34 and name != "fit":  # without a checkpoint, fit would begin a large run
        args[-1], note = _arranged(rng, path)
        return Case(args, note=note)
    content = torch.load(path, weights_only=True)
    if way < 0.5:
        note, expected = _other_tensor(rng, content)
        torch.save(content, path)
        return Case(args, expected, note)
    if way < 0.7:
        class_path, arguments = rng.choice(CALLS) if rng.random() < 0.6 else (_callable(rng), {"lr": MARKER})
        note = _named(rng, content["hyper_parameters"], class_path, arguments)
        torch.save(content, path)
        return Case(args, expected, note)
    if way < 0.75:
        note = "an address as source"
        content["datamodule_hyper_parameters"]["source"] = rng.choice(["http://127.0.0.1:9/a.txt", "hub:nope/nope"])
        torch.save(content, path)
        return Case(args, "refuse" if name in ("validate", "fit", "data info", "prepare") else "either", note)
    if way < 0.8:
        key = rng.choice(["state_dict", "hyper_parameters", "tokenizer", "global_step", "lit_lm_format"])
        del content[key]
        torch.save(content, path)
        return Case(args, "refuse", f"{key}: removed")
    part = rng.choice([*content, "hyper_parameters", "datamodule_hyper_parameters", "loops", "optimizer_states"])
    new, note = mutated(rng, {part: content[part]})
    torch.save({key: value for key, value in content.items() if key != part} | new, path)
    return Case(args, note=note)


def _arranged(rng: Random, path: Path) -> tuple[str, str]:
    """Move a checkpoint to a folder of runs with odd names; returns the option that names it, and what is odd."""
    version = rng.choice(["version_0", "version_٣", "version_", "version_-1", "version_x", f"version_{'9' * 30}"])
    name = rng.choice(["step_00000002.ckpt", "best.ckpt", "last.ckpt", "step_x.ckpt", f"step_{'9' * 30}.ckpt", ".ckpt"])
    folder = Path("logs", "run", version, "checkpoints")
    folder.mkdir(parents=True)
    path.rename(folder / name)
    other = folder / rng.choice(["best.ckpt", "last.ckpt", "step_00000009.ckpt"])
    where = rng.choice(["best", "last", "logs", "logs/run", f"logs/run/{version}", str(folder)])
    return f"--ckpt_path={where}", f"{version}/{name}, {other.name}: {odd_file(rng, other)}"


def _other_tensor(rng: Random, content: dict[str, Any]) -> tuple[str, Expected]:
    """Replace a tensor of the weights or the optimizer; returns what it is, and what is expected."""
    import torch

    part = content["state_dict"]
    if rng.random() < 0.4:
        states = content["optimizer_states"][0]["state"]
        part = states[rng.choice(list(states))]
    key = rng.choice(list(part))
    old = part[key] if isinstance(part[key], torch.Tensor) else torch.ones(2)
    doubled = torch.cat([old, old]) if old.dim() else old.expand(2)
    way, new = rng.choice([
        ("scalar", torch.tensor(1.0)), ("empty", torch.empty(0)), ("transposed", old.T), ("integers", old.int()),
        ("bfloat16", old.bfloat16()), ("float64", old.double()), ("complex", old.to(torch.complex64)),
        ("nan", old * float("nan")), ("inf", old * float("inf")), ("bool", old > 0), ("sparse", old.to_sparse()),
        ("larger", doubled), ("huge", torch.zeros(1).expand(2**33)), ("a list", old.tolist()),
        ("expanded", torch.tensor(0.0).expand(old.shape)), ("None", None), ("a number", 1), ("a word", "x"),
        ("meta", old.to("meta")), ("quantized", torch.quantize_per_tensor(old.float(), 0.1, 0, torch.qint8)),
        ("a parameter", torch.nn.Parameter(old)), ("strided", torch.zeros(4 * old.numel())[::4].reshape(old.shape)),
        ("removed", None), ("doubled", old),
    ])  # fmt: skip
    if way == "doubled":
        part[f"{key}2" if isinstance(key, str) else 99] = new
    else:
        part[key] = new
    if way == "removed":
        del part[key]
    weights = part is content["state_dict"]
    usable = (
        "transposed",
        "integers",
        "bfloat16",
        "float64",
        "nan",
        "inf",
        "bool",
        "expanded",
        "a parameter",
        "strided",
    )
    return f"{'weight' if weights else 'state'} {way}", "refuse" if weights and way not in usable else "either"


def _named(rng: Random, model: dict[str, Any], class_path: str, arguments: dict[str, Any]) -> str:
    """Put a class path into the hyperparameters of a model."""
    spec = {"class_path": class_path, "init_args": arguments}
    part = rng.choice(["optimizer", "schedule", "net", "z_loss", "lr", "params", "deep", "word", "dict_kwargs"])
    if part in ("lr", "params", "deep", "dict_kwargs"):
        value: Any = {"lr": spec, "params": [spec], "deep": {"x": [{"y": spec}]}, "dict_kwargs": spec}[part]
        owner = model[rng.choice(["optimizer", "schedule"])]
        owner["dict_kwargs" if part == "dict_kwargs" else "init_args"] = {"lr": value}
    elif part == "net":
        model["net"][rng.choice(list(model["net"]))] = spec
    elif part == "word":
        model["optimizer"] = class_path
    else:
        model[part] = spec
    return f"{part} is {class_path}" if (class_path, arguments) in CALLS else f"{part} is a callable"


def _callable(rng: Random) -> str:
    """The name of a random callable of torch."""
    modules = [name for name in sorted(sys.modules) if name.startswith("torch.")]
    module = sys.modules[rng.choice(modules)]
    names = [name for name, value in sorted(vars(module).items()) if callable(value)]
    return f"{module.__name__}.{rng.choice(names or ['x'])}"


def pickled(rng: Random, path: Path) -> str:
    """Replace the pickle in a checkpoint, or the way that it is packed."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    data = next(name for name in entries if name.endswith("data.pkl"))
    calls = [("os", "system", f"touch {MARKER}"), ("builtins", "exec", f"open('{MARKER}', 'w')"),
             ("builtins", "bytearray", 2**40), ("_codecs", "encode", "x" * 100), ("torch", "device", "nope"),
             ("torch._utils", "_rebuild_tensor_v2", 1), ("torch", "load", MARKER), ("collections", "OrderedDict", 1),
             ("torch._utils", "_rebuild_parameter", 1), ("torch.serialization", "_get_layout", "x"),
             ("pathlib", "Path", MARKER), ("numpy", "load", MARKER), ("torch._C", "_cuda_init", 1)]  # fmt: skip
    module, function, argument = rng.choice(calls)
    name, packing = f"{module}.{function}", zipfile.ZIP_STORED
    call = f"c{module}\n{function}\n(".encode() + pickle.dumps(argument, 2)[2:-1] + b"tR."
    way = rng.randrange(8)
    if way <= 3:
        entries[data] = b"\x80\x02" + call
    elif way == 4:
        name, entries[data] = "a deep pickle", b"\x80\x02" + b"(" * 1_000_000 + b"."
    elif way == 5:
        name, entries[data] = "a long pickle", b"\x80\x02" + b"]" + b"K\x01a" * 3_000_000 + b"."
    elif way == 6:
        name, packing = "a bomb", zipfile.ZIP_DEFLATED
        entries[data] = b"\x80\x02X" + struct.pack("<I", 2**30) + b"\0" * 2**30 + b"."
    elif rng.random() < 0.5:
        path.write_bytes(b"\x80\x02" + call)  # in the format without an archive
        return f"legacy: {name}"
    else:
        name = "paths in the archive"
        entries = {rng.choice(["../", "/", "a/"]) + key: value for key, value in entries.items()}
    with zipfile.ZipFile(path, "w", packing, compresslevel=1) as archive:
        for key, value in entries.items():
            archive.writestr(key, value)
    return f"pickle: {name}"


def stores(rng: Random, number: int, material: Path) -> Case:
    """Prepared stores whose descriptions lie, or whose files are damaged."""
    shutil.copytree(material / "store", "store")
    name = rng.choice(["fit", "data info", "data show", "prepare", "validate"])
    args = [*command(name, material), "--data.source=store"]
    if number % 20 == 0:
        return Case(args, "accept", name)
    folder = Path("store") / rng.choice(["train", "validation"])
    way, tokens = rng.random(), folder / "tokens-00000.bin"
    if way < 0.45:
        tree, note = mutated(rng, json.loads((folder / "meta.json").read_text()))
        (folder / "meta.json").write_text(json.dumps(tree))
        return Case(args, note=f"meta.json: {note}")
    path = folder / rng.choice(["meta.json", "tokens-00000.bin", "tokenizer.json"])
    if way < 0.65:
        content, note = spoiled(rng, path.read_bytes())
        path.write_bytes(content)
    elif way < 0.85:
        note = odd_file(rng, path)
    elif way < 0.95:
        note = "ids beyond the vocabulary"
        tokens.write_bytes(b"\xff" * tokens.stat().st_size)
    else:
        note = "a link out of the store"
        shutil.copy(tokens, "elsewhere")
        tokens.unlink()
        tokens.symlink_to(Path("elsewhere").absolute())
    whole = path.name == "tokens-00000.bin" and note in ("cut", "empty", "twice", "FIFO", "folder", "missing")
    used = name != "validate" or folder.name == "validation"
    return Case(args, "refuse" if used and (whole or way >= 0.95) else "either", f"{path.name}: {note}")


def tokenizers(rng: Random, number: int, material: Path) -> Case:
    """Tokenizers of all formats with changes, odd texts and ids, and odd texts to train on."""
    kinds = [path.name for path in sorted(material.iterdir()) if path.name.startswith("tokenizer.")]
    kind = rng.choice([*kinds, "gpt2"])
    path = Path(kind)
    (shutil.copytree if kind == "gpt2" else shutil.copy)(material / kind, kind)
    fit = command("fit", material)
    fit = [*fit, "--model.net.vocab_size=600", f"--data.tokenizer={kind}"]
    args = rng.choice([
        ["tokenizer", "info", kind, f"--on={material}/corpus.txt"], ["tokenizer", "decode",
        kind, f"{material}/ids.txt"],
        ["tokenizer", "encode", kind, f"{material}/corpus.txt"],
        ["tokenizer", "info", kind, "--on=text.txt", "--text=é x"],
        fit, [*command("prepare", material), "--model.net.vocab_size=600", f"--data.tokenizer={kind}"],
        ["tokenizer", "encode", kind, "text.txt"], ["tokenizer", "decode", kind, "text.txt"],
    ])  # fmt: skip
    text, note = odd_text(rng)
    Path("text.txt").write_bytes(text)
    if number % 20 == 0:
        return Case(["tokenizer", "info", kind, f"--on={material}/corpus.txt"], "accept", kind)
    way = rng.random()
    if way < 0.15:
        size = rng.choice(["300", "300", "257", "1", "2", "1000000", "99999999999"])
        sort = rng.choice(["bpe", "unigram", "char"])
        return Case(["tokenizer", "train", "text.txt", f"--tokenizer_type={sort}", f"--vocab_size={size}"],
                    note=f"{sort} of {size} on {note}")  # fmt: skip
    if "text.txt" in args:
        return Case(args, note=f"{kind}, {args[1]} {note}")
    if kind == "gpt2":
        path /= rng.choice(["vocab.json", "merges.txt", "tokenizer_config.json", "added_tokens.json"])
        if not path.exists():
            path.write_text('{"add_prefix_space": true}' if "config" in path.name else '{"<|x|>": 300}')
    if path.suffix == ".json" and way < 0.7:
        tree, note = mutated(rng, json.loads(path.read_text(encoding="utf-8")))
        path.write_text(json.dumps(tree), encoding="utf-8")
    elif way < 0.9:
        content, note = spoiled(rng, path.read_bytes())
        path.write_bytes(content)
    else:
        note = odd_file(rng, path)
    return Case(args, note=f"{kind} {path.name}: {note}"[:100])
