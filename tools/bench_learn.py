r"""Train a model with another project's own training program, and evaluate it like `lit-lm validate`.

    lit-lm prepare --model.net.vocab_size 8192 --data.cache_dir cache \
        --data.source english-train.txt --data.val_source english-select.txt
    PYTHON tools/bench_learn.py nanogpt ../nanoGPT --text english --size 256x6 --steps 6000 --lr 1e-3
    PYTHON tools/bench_learn.py litgpt --text english --size 256x6 --steps 6000 --lr 1e-3
    PYTHON tools/bench_learn.py minimind ../minimind --text chinese --size 256x6 --steps 6000 --lr 1e-3

PYTHON has the packages of that project. `--text` is the prefix of files written by tools/corpora.py. nanoGPT reads the
ids that lit-lm prepared, litgpt encodes with lit-lm's tokenizer, MiniMind with its own. Prints the seconds of the
training program, which starts without compiled code from earlier runs, the number of parameters, and bits per byte.
"""

import argparse
import json
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from corpora import SEPARATOR
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

END_OF_TEXT = SEPARATOR.strip()
Logits = Callable[[Tensor], Tensor]
"""Logits (B, T, V) of ids (B, T)."""


def documents(path: str) -> list[str]:
    """Documents of a file written by tools/corpora.py."""
    return Path(path).read_text(encoding="utf-8").split(SEPARATOR)


def train_nanogpt(args: argparse.Namespace, folder: Path) -> None:
    """train.py with the settings of config/train_shakespeare_char.py, without dropout."""
    for name in ("train.py", "model.py", "configurator.py"):
        shutil.copy(args.checkout / name, folder)
    data = folder / "data" / "text"
    data.mkdir(parents=True)
    for name in ("train.bin", "val.bin"):  # its own estimate of the validation loss is not used
        (data / name).write_bytes(b"".join(path.read_bytes() for path in stored_ids(args.cache)))
    (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": tokenizer(args.cache).get_vocab_size()}))
    options = {
        "device": "cpu", "dtype": "float32", "compile": True, "dataset": "text", "out_dir": "out",
        "n_layer": args.num_layers, "n_head": args.d_model // 64, "n_embd": args.d_model, "dropout": 0.0,
        "block_size": args.context_length, "batch_size": args.batch_size, "gradient_accumulation_steps": 1,
        "learning_rate": args.lr, "min_lr": args.lr / 10, "beta2": 0.99, "warmup_iters": 100,
        "max_iters": args.steps, "lr_decay_iters": args.steps, "eval_interval": args.steps, "eval_iters": 1,
        "log_interval": 100,
    }  # fmt: skip
    run([sys.executable, "train.py", *(f"--{name}={value}" for name, value in options.items())], folder)


def load_nanogpt(args: argparse.Namespace, folder: Path) -> tuple[nn.Module, Logits]:
    """The model that nanoGPT's train.py saved."""
    sys.path.insert(0, str(folder))
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    checkpoint = torch.load(folder / "out" / "ckpt.pt", weights_only=True)
    model = GPT(GPTConfig(**checkpoint["model_args"]))
    model.load_state_dict({name.removeprefix("_orig_mod."): value for name, value in checkpoint["model"].items()})
    return model, lambda ids: model(ids, ids)[0]  # without targets, it returns only the last logits


def train_litgpt(args: argparse.Namespace, folder: Path) -> None:
    """`litgpt pretrain` with the settings of config_hub/pretrain/tinystories.yaml."""
    for name in ("train", "select"):
        (folder / name).mkdir()
        shutil.copy(f"{args.text}-{name}.txt", folder / name / "text.txt")
    shutil.copy(stored_ids(args.cache)[0].with_name("tokenizer.json"), folder)
    special = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    heads = args.d_model // 64
    options = {
        "model_name": "stories15M", "out_dir": "out", "tokenizer_dir": ".", "precision": args.precision,
        "devices": 1, "logger_name": "csv",
        "model_config": {
            "name": "text", "hf_config": {}, "block_size": args.context_length, "n_layer": args.num_layers,
            "padded_vocab_size": tokenizer(args.cache).get_vocab_size(), "n_head": heads, "n_query_groups": heads,
            "n_embd": args.d_model, "head_size": 64, "rotary_percentage": 1.0, "parallel_residual": False,
            "bias": False, "norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP",
            "intermediate_size": 64 * math.ceil(args.d_model * 8 / 3 / 64),
        },
        "data": {
            "class_path": "litgpt.data.TextFiles",
            "init_args": {"train_data_path": "train", "val_data_path": "select", "num_workers": 0},
        },
        "train": {
            "save_interval": 10**9, "log_interval": 100, "global_batch_size": args.batch_size,
            "micro_batch_size": args.batch_size, "lr_warmup_steps": 100, "min_lr": 0.0, "max_norm": 1.0,
            "max_tokens": args.steps * args.batch_size * args.context_length,
            "max_seq_length": args.context_length, "tie_embeddings": True,
        },
        "eval": {"interval": 10**9, "max_iters": 1, "initial_validation": False, "final_validation": False},
        "optimizer": {
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": args.lr, "weight_decay": 0.1, "betas": [0.9, 0.95]},
        },
    }  # fmt: skip
    (folder / "pretrain.yaml").write_text(json.dumps(options))
    run([str(Path(sys.executable).with_name("litgpt")), "pretrain", "--config", "pretrain.yaml"], folder)


def load_litgpt(args: argparse.Namespace, folder: Path) -> tuple[nn.Module, Logits]:
    """The model that `litgpt pretrain` saved."""
    from litgpt import GPT, Config  # type: ignore[import-not-found]

    model = GPT(Config.from_file(folder / "out" / "final" / "model_config.yaml"))
    model.load_state_dict(torch.load(folder / "out" / "final" / "lit_model.pth", weights_only=True)["model"])
    model.transformer.wte.weight = model.lm_head.weight  # as in training
    return model, model


def train_minimind(args: argparse.Namespace, folder: Path) -> None:
    """trainer/train_pretrain.py: one epoch of as many documents as the steps need."""
    shutil.copytree(args.checkout, folder / "minimind", ignore=shutil.ignore_patterns(".git", "images"))
    texts = documents(f"{args.text}-train.txt")
    with open(folder / "text.jsonl", "w", encoding="utf-8") as file:
        for number in range(args.steps * args.batch_size):
            file.write(json.dumps({"text": texts[number % len(texts)]}) + "\n")
    options = {
        "device": "cpu", "use_compile": 1, "epochs": 1, "batch_size": args.batch_size, "accumulation_steps": 1,
        "learning_rate": args.lr, "hidden_size": args.d_model, "num_hidden_layers": args.num_layers,
        "max_seq_len": args.context_length, "data_path": "../../text.jsonl", "num_workers": 0,
        "save_interval": 10**9, "log_interval": 100,
    }  # fmt: skip
    command = [sys.executable, "train_pretrain.py", *(f"--{name}={value}" for name, value in options.items())]
    run(command, folder / "minimind" / "trainer")


def load_minimind(args: argparse.Namespace, folder: Path) -> tuple[nn.Module, Logits]:
    """The model that MiniMind's train_pretrain.py saved."""
    sys.path.insert(0, str(folder / "minimind"))
    from model.model_minimind import MiniMindConfig, MiniMindForCausalLM  # type: ignore[import-not-found]

    model = MiniMindForCausalLM(MiniMindConfig(hidden_size=args.d_model, num_hidden_layers=args.num_layers))
    path = folder / "minimind" / "out" / f"pretrain_{args.d_model}.pth"
    model.load_state_dict(torch.load(path, weights_only=True))
    return model, lambda ids: model(ids).logits


def stored_ids(cache: Path) -> list[Path]:
    """Files of the training ids (uint16) that `lit-lm prepare` wrote: the largest store."""
    stores = [sorted(store.glob("tokens-*.bin")) for store in cache.glob("stores/*")]
    return max(stores, key=lambda files: sum(file.stat().st_size for file in files))


def tokenizer(cache: Path) -> Tokenizer:
    """Tokenizer of these ids."""
    return Tokenizer.from_file(str(stored_ids(cache)[0].with_name("tokenizer.json")))


def run(command: list[str], folder: Path) -> None:
    """Run a training program; print its seconds."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as compiled:
        subprocess.run(command, cwd=folder, env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": compiled}, check=True)
    print(f"seconds {time.perf_counter() - started:.0f}")


def stream(args: argparse.Namespace, texts: list[str]) -> Iterator[list[int]]:
    """All documents in one row, each followed by the end-of-text token, in windows of context_length + 1 ids."""
    encoder = tokenizer(args.cache)
    text = "".join(text + END_OF_TEXT for text in texts)
    ids = encoder.encode(text, add_special_tokens=False).ids
    for start in range(0, len(ids) - 1, args.context_length):
        yield ids[start : start + args.context_length + 1]


def rows(args: argparse.Namespace, texts: list[str]) -> Iterator[list[int]]:
    """Each document by itself, between MiniMind's tokens for its start and its end, in windows as above."""
    encoder = Tokenizer.from_file(str(args.checkout / "model" / "tokenizer.json"))
    for text in texts:
        ids = encoder.encode(f"<|im_start|>{text}<|im_end|>", add_special_tokens=False).ids
        for first in range(0, len(ids) - 1, args.context_length):
            yield ids[first : first + args.context_length + 1]


@torch.inference_mode()
def nats(logits: Logits, windows: Iterator[list[int]]) -> float:
    """Sum of -log p over all ids of the windows but the first of each."""
    total = 0.0
    for window in windows:
        ids = torch.tensor(window)
        total += float(cross_entropy(logits(ids[None, :-1])[0].float(), ids[1:], reduction="sum"))
    return total


PROGRAMS = {"nanogpt": "train.py", "minimind": "trainer/train_pretrain.py"}
"""Training programs in the checkouts."""
PROJECTS = {
    "nanogpt": (train_nanogpt, load_nanogpt, stream),
    "litgpt": (train_litgpt, load_litgpt, stream),
    "minimind": (train_minimind, load_minimind, rows),
}


def size(text: str) -> tuple[int, int]:
    """Width and number of layers of a size such as 256x6."""
    if not (found := re.fullmatch(r"(\d+)x(\d+)", text)) or int(found[1]) % 64:
        raise argparse.ArgumentTypeError(f"{text!r} is not a width, divisible by 64, x layers, such as 256x6")
    return int(found[1]), int(found[2])


def main() -> None:
    """Train, evaluate, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", choices=PROJECTS)
    parser.add_argument("checkout", nargs="?", type=lambda path: Path(path).resolve(), help="not for litgpt")
    parser.add_argument("--text", required=True, type=os.path.abspath, help="path of the files, without -train.txt")
    parser.add_argument("--on", choices=["select", "test"], default="test", help="file to evaluate on; default: test")
    parser.add_argument("--cache", type=lambda path: Path(path).resolve(), default=Path("cache").resolve(),
                        help="data.cache_dir of lit-lm prepare; default: cache")  # fmt: skip
    parser.add_argument("--size", required=True, type=size, help="width x layers, such as 256x6")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--batch_size", type=int, default=8, help="sequences per step; default: 8")
    parser.add_argument("--context_length", type=int, default=256, help="tokens; default: 256")
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="32-true",
                        help="litgpt only: the others train in float32 on a CPU; default: 32-true")  # fmt: skip
    args = parser.parse_args()
    args.d_model, args.num_layers = args.size
    program = PROGRAMS.get(args.project)
    if program and not (args.checkout and (args.checkout / program).is_file()):
        parser.error(f"{args.checkout} has no {program}; pass the path of a checkout of {args.project}")
    if missing := [name for name in ("train", "select", "test") if not Path(f"{args.text}-{name}.txt").is_file()]:
        parser.error(f"there is no {args.text}-{missing[0]}.txt; tools/corpora.py writes it")
    if args.project != "minimind" and not any(args.cache.glob("stores/*/tokens-*.bin")):
        parser.error(f"--cache {args.cache} has no ids; write them with lit-lm prepare --data.cache_dir")
    train, load, windows = PROJECTS[args.project]
    texts = documents(f"{args.text}-{args.on}.txt")
    with tempfile.TemporaryDirectory() as name:
        train(args, Path(name))
        model, logits = load(args, Path(name))
        model.eval()
        bits = nats(logits, windows(args, texts)) / math.log(2) / sum(len(text.encode()) for text in texts)
    print(f"parameters {sum(p.numel() for p in model.parameters()):,}")
    print(f"bits_per_byte {bits:.4f}")


if __name__ == "__main__":
    main()
