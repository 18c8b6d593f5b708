"""Benchmark of training on a CUDA device: lit-lm against nanoGPT and transformers, with GPT-2's 124 M model.

    python tools/bench_gpu.py --nanogpt ../nanoGPT --peers ../peers/bin/python

All use bfloat16 autocast, torch.compile and a fused optimizer, and take turns. Model FLOPs utilization (MFU) is
relative to the measured peak of a bfloat16 matrix product on the same device. Prints a Markdown table.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from bench_train import add_peers, peers
from bench_turns import bare, measure, peak_flops, table
from bench_worker import Task

from lit_lm.model.config import TransformerConfig

SHAPE = TransformerConfig(
    vocab_size=50_304,  # GPT-2's, padded to a multiple of 64 as in nanoGPT
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
    """Measure lit-lm and the contenders in `pythons` (name: Python interpreter); returns a Markdown table."""
    rows = [bare(name, task, python) for name, python in (pythons | {"lit-lm": sys.executable}).items()]
    with tempfile.TemporaryDirectory() as folder:
        measure(rows, rounds, Path(folder))
    return "\n".join(table(rows, peak_flops(task.device)))


def main() -> None:
    """Parse the command line and run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=12, help="sequences of 1,024 tokens; default: 12")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    add_peers(parser)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench_gpu.py needs a CUDA device, but torch finds none", file=sys.stderr)
        raise SystemExit(2)
    pythons = peers(args.nanogpt, args.peers)
    pythons.pop("litgpt", None)  # has no learned positions
    task = Task(SHAPE, args.batch_size, "bf16", compile=True, device="cuda", nanogpt=args.nanogpt)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, batch {args.batch_size}, {args.rounds} rounds\n")
    print(bench(task, pythons, args.rounds))


if __name__ == "__main__":
    main()
