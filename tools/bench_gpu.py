"""Training on a CUDA device: lit-lm's step of GPT-2's 124 M model beside those of nanoGPT and transformers, by turns.

    python tools/bench_gpu.py --nanogpt ../nanoGPT --peers ../peers/bin/python

All with bfloat16 autocast, compiled, with a fused optimizer. The share is of what a bfloat16 matrix product reaches on
the same device, which makes it a model FLOPs utilization (MFU) that knows no data sheet. Prints a table in Markdown.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from bench_train import add_peers, peers
from bench_turns import bare, measure, peak_flops, table
from bench_worker import Task

from lit_lm.model.transformer import TransformerConfig

SHAPE = TransformerConfig(
    vocab_size=50_304,  # GPT-2's, up to a multiple of 64, as nanoGPT trains it
    context_length=1024,
    d_model=768,
    num_layers=12,
    num_heads=12,
    norm="layernorm",
    mlp="gelu",
    positions="learned",
    tie_embeddings=True,
)


def bench(task: Task, pythons: dict[str, str], rounds: int) -> str:
    """A table of the contenders, each given with the interpreter that has it, and of lit-lm."""
    rows = [bare(name, task, python) for name, python in (pythons | {"lit-lm": sys.executable}).items()]
    with tempfile.TemporaryDirectory() as folder:
        measure(rows, rounds, Path(folder))
    return "\n".join(table(rows, peak_flops(task.device)))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=12, help="sequences of 1,024 tokens; default: 12")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    add_peers(parser)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench_gpu.py needs a CUDA device, and torch sees none", file=sys.stderr)
        raise SystemExit(2)
    pythons = peers(args.nanogpt, args.peers)
    pythons.pop("litgpt", None)  # it knows no learned positions
    task = Task(SHAPE, args.batch_size, "bf16", compile=True, device="cuda", nanogpt=args.nanogpt)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, batch {args.batch_size}, {args.rounds} rounds\n")
    print(bench(task, pythons, args.rounds))


if __name__ == "__main__":
    main()
