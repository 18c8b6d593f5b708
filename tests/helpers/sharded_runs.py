"""Short runs of tiny models, in this process or, as a program, sharded over several, with the same data."""

import errno
import json
import os
import sys
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from lit_lm import LitLM, TransformerConfig
from lit_lm.optim import AdamW, Muon
from lit_lm.training import joint_write
from lit_lm.training.sharding import FullyShardedStrategy

STEPS, BATCH = 12, 8
LLAMA = TransformerConfig(
    vocab_size=61, context_length=16, d_model=24, num_layers=3, num_heads=2, d_ff=45, zero_init=True
)
GPT2 = TransformerConfig(
    vocab_size=61, context_length=16, d_model=24, num_layers=2, num_heads=2,
    norm="layernorm", mlp="gelu", positions="learned", bias=True, tie_embeddings=True,
)  # fmt: skip
DIVISIBLE = replace(
    LLAMA, vocab_size=62, num_heads=6, num_kv_heads=2, d_ff=46, qk_norm=True, bias=True, zero_init=False
)  # q_proj, divided by rows, and o_proj, by columns, have the same shape
ADAMW = partial(AdamW, lr=3e-3)
VARIANTS: dict[str, dict[str, Any]] = {
    "adamw": {"on_meta_device": True},
    "gpt2": {"net": GPT2},
    "micro-batches": {"activation_checkpointing": True, "accumulate": 2},
    "muon": {"optimizer": Muon},
    "torch": {"optimizer": partial(torch.optim.SGD, lr=0.3)},
    "bf16": {"precision": "bf16-mixed"},
    "resumed": {"ckpt_path": "one.ckpt", "steps": STEPS + 6},
    "parallel": {"net": DIVISIBLE, "tensor_parallel_size": 2, "on_meta_device": True, "z_loss": 1e-2},
    "parallel gpt2": {"net": replace(GPT2, vocab_size=62), "tensor_parallel_size": 2, "accumulate": 2},
    "parallel muon": {
        "net": DIVISIBLE,
        "tensor_parallel_size": 2,
        "optimizer": partial(Muon, period=1),
        "precision": "bf16-mixed",
    },
    "parallel torch": {
        "net": DIVISIBLE,
        "tensor_parallel_size": 2,
        "optimizer": partial(torch.optim.SGD, lr=0.3, foreach=True),
        "activation_checkpointing": True,
    },
    "parallel resumed": {"net": DIVISIBLE, "ckpt_path": "parallel.ckpt", "steps": STEPS + 6},
    "resumed parallel": {
        "net": DIVISIBLE,
        "ckpt_path": "parallel resumed.ckpt",
        "steps": STEPS + 9,
        "tensor_parallel_size": 2,
    },
}


def losses(
    strategy: Any,
    rank: int = 0,
    processes: int = 1,
    tensor_parallel_size: int = 1,
    *,
    steps: int = STEPS,
    accumulate: int = 1,
    precision: Any = "32-true",
    on_meta_device: bool = False,
    ckpt_path: str | None = None,
    save: str | None = None,
    **model: Any,
) -> list[float]:
    """The training losses of a run, each the mean over all processes."""
    readers = max(1, processes // tensor_parallel_size)
    rows = BATCH // readers // accumulate
    first = torch.randint(61, (steps, accumulate, readers, rows, 1), generator=torch.Generator().manual_seed(1))
    windows = (first + 7 * torch.arange(17)) % 61
    here = windows[:, :, rank // tensor_parallel_size].flatten(0, 2)
    with torch.device("meta" if on_meta_device else "cpu"):
        module = LitLM(**{"net": LLAMA, "optimizer": ADAMW, "seed": 5, "compile": False} | model)
    found: list[float] = []
    module._log_step = lambda step, rate: (module.read_steps(step), found.append(module.steps.last_read[-1].loss))  # type: ignore[method-assign, func-returns-value]
    trainer = Trainer(
        accelerator="cpu", devices=processes, strategy=strategy, precision=precision, max_steps=steps,
        accumulate_grad_batches=accumulate, gradient_clip_val=0.5, log_every_n_steps=1, use_distributed_sampler=False,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    batches = DataLoader([(x[:-1], x[1:]) for x in here], rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's hints
        trainer.fit(module, batches, ckpt_path=ckpt_path)
    if save is not None:
        trainer.save_checkpoint(save)
    return found


def main() -> None:
    """Run all variants in this process of several, and write the losses of the first process to losses.json.

    Then save where the first process cannot, and while the disk of the last one is full; each writes the errors.
    """
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    found = {}
    for name, variant in VARIANTS.items():
        strategy = FullyShardedStrategy(variant.get("tensor_parallel_size", 1))
        found[name] = losses(strategy, rank, processes, **variant, save=f"{name}.ckpt")
    if rank == 0:
        Path("losses.json").write_text(json.dumps(found))
    Path("file").touch()
    for save in ("file/blocked.ckpt", "full.ckpt"):
        if save == "full.ckpt" and rank == processes - 1:
            joint_write.os.fsync = full  # type: ignore[attr-defined]
        try:
            losses(FullyShardedStrategy(), rank, processes, steps=1, save=save)
        except OSError as error:
            with open(f"errors{rank}.txt", "a", encoding="utf-8") as file:
                print(error, file=file)


def full(file: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
