"""Training steps of one contender, in a separate process.

    python tools/bench_worker.py litgpt '{"config": {"d_model": 512}, "batch_size": 8, "precision": "bf16"}'

Warms up and prints a JSON object on one line. Then, for each line of stdin, a number of steps, takes the steps and
prints another object. Needs torch, lit_lm and the packages of the contender.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_lm.model.config import TransformerConfig
from lit_lm.model.losses import linear_cross_entropy
from lit_lm.model.transformer import Transformer
from lit_lm.optim import AdamW, FusedOptimizer, parameter_groups
from lit_lm.training.hardware import flush_denormals, tune_malloc

Loss = Callable[[Tensor, Tensor], Tensor]
"""Mean loss for inputs and targets, each (B, T) int64."""
Contender = tuple[nn.Module, Loss, Optimizer]
WARM_UP = 2
"""Number of first steps that are not measured; the first one compiles."""


@dataclass(frozen=True)
class Task:
    """Work of a contender."""

    config: TransformerConfig
    batch_size: int
    precision: str = "float32"
    """float32, or bf16 (autocast)."""
    compile: bool = False
    device: str = "cpu"
    threads: int = 2
    nanogpt: str = ""
    """Path of a nanoGPT checkout."""


class Turns:
    """Prints the measurements after the requested number of steps, and waits for the next request."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.steps = self.left = WARM_UP
        self.started = time.perf_counter()

    def after_step(self) -> None:
        """Count a step. Exits if there are no more requests."""
        self.left -= 1
        if self.left:
            return
        if self.device == "cuda":
            torch.cuda.synchronize()
        seconds = (time.perf_counter() - self.started) / self.steps
        print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes(self.device)}), flush=True)
        asked = sys.stdin.readline()
        if not asked:
            raise SystemExit
        self.steps = self.left = int(asked)
        self.started = time.perf_counter()


def peak_bytes(device: str) -> int:
    """Peak memory so far: of the device, or on a CPU of the process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def lit_lm(task: Task) -> Contender:
    """The step of `LitLM`, without Lightning."""
    tune_malloc()
    flush_denormals()
    model = Transformer(task.config).to(task.device)
    hidden = torch.compile(model.features, dynamic=False) if task.compile else model.features

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        weight = model.head.weight
        return linear_cross_entropy(hidden(inputs).flatten(0, 1), weight, targets.flatten(), compiled=task.compile)

    return model, loss, AdamW(parameter_groups(model))


def nanogpt(task: Task) -> Contender:
    """The step of nanoGPT's train.py."""
    config = task.config
    sys.path.insert(0, task.nanogpt)
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    model = GPT(
        GPTConfig(
            vocab_size=config.vocab_size, block_size=config.context_length, n_embd=config.d_model,
            n_layer=config.num_layers, n_head=config.num_heads, bias=False, dropout=0.0,
        )
    ).to(task.device)  # fmt: skip
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), task.device)
    forward = torch.compile(model) if task.compile else model
    return model, lambda inputs, targets: forward(inputs, targets)[1], optimizer


def litgpt(task: Task) -> Contender:
    """The step of litgpt's pretrain.py, without Fabric."""
    config = task.config
    from litgpt import GPT, Config  # type: ignore[import-not-found]
    from litgpt.utils import chunked_cross_entropy  # type: ignore[import-not-found]

    model = GPT(
        Config(
            vocab_size=config.vocab_size, padded_vocab_size=config.vocab_size, block_size=config.context_length,
            n_embd=config.d_model, n_layer=config.num_layers, n_head=config.num_heads,
            intermediate_size=config.feed_forward_size, norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP",
            rotary_percentage=1.0, parallel_residual=False, bias=False,
        )
    ).to(task.device)  # fmt: skip
    forward = torch.compile(model) if task.compile else model
    optimizer = torch.optim.AdamW(model.parameters(), fused=task.device == "cuda")
    return model, lambda inputs, targets: chunked_cross_entropy(forward(inputs), targets), optimizer


def transformers(task: Task) -> Contender:
    """Llama, or GPT-2 if the norm is layernorm, with the fused optimizer, the default of transformers' Trainer."""
    config = task.config
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig

    shape: dict[str, Any] = {
        "vocab_size": config.vocab_size, "hidden_size": config.d_model, "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads, "max_position_embeddings": config.context_length,
        "tie_word_embeddings": config.tie_embeddings, "use_cache": False, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    if config.norm == "layernorm":
        theirs: PretrainedConfig = GPT2Config(**shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    else:
        theirs = LlamaConfig(**shape, intermediate_size=config.feed_forward_size)
    model = AutoModelForCausalLM.from_config(theirs).to(task.device).train()  # type: ignore[no-untyped-call]
    forward = torch.compile(model) if task.compile else model
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    # the model shifts the labels itself
    return model, lambda inputs, targets: forward(input_ids=inputs, labels=inputs).loss, optimizer


CONTENDERS: dict[str, Callable[[Task], Contender]] = {
    "nanoGPT": nanogpt,
    "litgpt": litgpt,
    "transformers": transformers,
    "lit-lm": lit_lm,
}


def training_step(contender: str, task: Task) -> Callable[[], None]:
    """The step of a contender (loss, gradients, clipping, update), always on the same random ids."""
    torch.manual_seed(0)
    model, loss, optimizer = CONTENDERS[contender](task)
    ids = torch.randint(task.config.vocab_size, (task.batch_size, task.config.context_length + 1), device=task.device)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def step() -> None:
        with torch.autocast(task.device, torch.bfloat16, enabled=task.precision == "bf16"):
            result = loss(inputs, targets)
        result.backward()  # type: ignore[no-untyped-call]
        if isinstance(optimizer, FusedOptimizer):  # clips in its update
            norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            optimizer.grad_scale = norm.clamp(min=1.0)
        else:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    """Run a worker."""
    contender, task = sys.argv[1], json.loads(sys.argv[2])
    task = Task(**task | {"config": TransformerConfig(**task["config"])})
    torch.set_num_threads(task.threads)
    turns = Turns(task.device)
    step = training_step(contender, task)
    while True:
        step()
        turns.after_step()


if __name__ == "__main__":
    main()
