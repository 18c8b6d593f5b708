"""A speed test of this machine with the layers of the model that is planned, in about a second.

The blocks, the head with the loss, and the update are measured one by one, at a smaller size if they take long, and
scaled by their FLOPs or their number of weights.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lit_lm.model.config import TransformerConfig
from lit_lm.model.cost import hidden_matrix_parameters
from lit_lm.model.layers import rope_table
from lit_lm.model.losses import linear_cross_entropy
from lit_lm.model.transformer import Block, init_weights
from lit_lm.optim.adamw import adamw_step
from lit_lm.optim.muon import muon_step
from lit_lm.planning.hardware import Hardware
from lit_lm.planning.memory import logits_chunk
from lit_lm.planning.setup import Setup, block_flops, training_flops

WORK = 2e10
"""FLOPs of a repetition."""
REPETITIONS = 3
"""How often a part runs after its first run; the fastest counts."""
WIDEST = 1024
"""Widest model that is measured; the products of wider ones are as efficient."""
COMPILED = {False: 0.85, True: 0.8}
"""Time of compiled blocks and loss relative to eager ones, in float32 and in bfloat16 (docs/speed.md)."""
FIT_SECONDS = 0.85e-3
"""Time per step of the Trainer and its callbacks (docs/speed.md)."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimizer step on one device, by part."""

    blocks: float
    head: float
    """Head, loss and their gradients."""
    update: float
    """Gradient norm and optimizer."""
    trainer: float = FIT_SECONDS

    @property
    def total(self) -> float:
        return self.blocks + self.head + self.update + self.trainer


def assumed_step(setup: Setup, hardware: Hardware) -> StepTime:
    """The time on a GPU on paper: FLOPs divided by the part of the peak that is assumed to be reached."""
    rate = hardware.reached * (hardware.peak if setup.bfloat16 else hardware.peak32)
    tokens = setup.micro_batches * setup.num_tokens
    blocks = block_flops(setup.net) * (4 / 3 if setup.checkpointing else 1)
    head = training_flops(setup.net) - block_flops(setup.net)
    return StepTime(tokens * blocks / rate, tokens * head / rate, 0.0)


def measured_step(setup: Setup, device: torch.device) -> StepTime:
    """Measure the parts of a step of eager training on this machine; a compiled one is assumed to be faster."""
    forward, both = _block_seconds(setup, device)
    blocks = both + (forward if setup.checkpointing else 0)
    faster = COMPILED[setup.bfloat16] if setup.compiled else 1.0
    number = setup.micro_batches
    head = _head_seconds(setup, device)
    return StepTime(number * faster * blocks, number * faster * head, _update_seconds(setup, device))


def _block_seconds(setup: Setup, device: torch.device) -> tuple[float, float]:
    """Seconds of the forward pass, and of both passes, of all blocks for a micro-batch."""
    net, length = _narrow(setup.net), setup.net.context_length
    affordable = WORK / (block_flops(net) / net.num_layers)  # tokens through one block
    length = min(length, 2 ** max(4, int(math.log2(affordable))))
    rows = max(1, min(setup.rows, int(affordable / length)))
    layers = max(1, min(net.num_layers, int(affordable / length / rows)))
    blocks = [init_weights(Block(net).to(device), layers) for _ in range(layers)]
    x = torch.randn(rows, length, net.d_model, device=device, requires_grad=True)
    rope = None
    if net.positions == "rope":
        cos, sin = rope_table(length, net.head_size, net.rope_theta)
        rope = cos.to(device), sin.to(device)
    forward, both = math.inf, math.inf
    for number in range(1 + REPETITIONS):
        start = _now(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=setup.bfloat16):
            y = x
            for block in blocks:
                y = block(y, rope)
        middle = _now(device)
        y.backward(x.detach())  # type: ignore[no-untyped-call]
        end = _now(device)
        if number:
            forward, both = min(forward, middle - start), min(both, end - start)
    measured = block_flops(replace(net, num_layers=layers, context_length=length)) * rows * length
    scale = block_flops(setup.net) * setup.num_tokens / measured
    return scale * forward, scale * both


def _head_seconds(setup: Setup, device: torch.device) -> float:
    """Seconds of the head and the loss for a micro-batch."""
    net, tokens = _narrow(setup.net), min(setup.num_tokens, logits_chunk(setup))
    vocabulary = max(256, min(net.vocab_size, int(WORK / (6 * net.d_model * tokens))))
    tokens = max(1, min(tokens, int(WORK / (6 * net.d_model * vocabulary))))
    weight = torch.zeros(vocabulary, net.d_model, device=device, requires_grad=True)
    hidden = torch.randn(tokens, net.d_model, device=device, requires_grad=True)
    targets = torch.zeros(tokens, dtype=torch.long, device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=setup.bfloat16):
            loss = linear_cross_entropy(hidden, weight, targets)
        loss.backward()  # type: ignore[no-untyped-call]

    full = setup.net.vocab_size * setup.net.d_model * setup.num_tokens
    return _fastest(step, device) * full / (vocabulary * net.d_model * tokens)


def _update_seconds(setup: Setup, device: torch.device) -> float:
    """Seconds of the gradient norm and the update of all parameters."""
    net = _narrow(setup.net)
    each = hidden_matrix_parameters(net) // net.num_layers
    layers = max(1, min(net.num_layers, 2_000_000 // each))
    blocks = [init_weights(Block(net).to(device), layers) for _ in range(layers)]
    matrices = [p.detach() for block in blocks for p in block.parameters() if p.ndim == 2]
    gradients = [torch.ones_like(p) for p in matrices]
    averages = [[torch.zeros_like(p) for p in matrices] for _ in range(2)]
    steps = [torch.zeros((), device=device) for _ in matrices]
    skip = torch.zeros((), device=device)

    def adamw() -> None:
        torch.nn.utils.get_total_norm(gradients)
        adamw_step(matrices, gradients, *averages, steps, lr=0.0, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1,
                   grad_scale=skip + 1, found_inf=skip)  # fmt: skip

    def muon() -> None:
        torch.nn.utils.get_total_norm(gradients)
        muon_step(matrices, gradients, averages[0], [0] * len(matrices), lr=0.0, momentum=0.95, weight_decay=0.1,
                  newton_schulz_steps=5, block_size=None, grad_scale=skip + 1, found_inf=skip)  # fmt: skip

    hidden = hidden_matrix_parameters(setup.net)
    per_weight = _fastest(adamw, device) / (layers * each)
    if setup.optimizer != "Muon":
        return per_weight * setup.parameters
    products = setup.net.d_model / net.d_model  # FLOPs of a weight's orthogonalization grow with the width
    per_hidden = _fastest(muon, device) / (layers * each) * products
    return per_hidden * hidden + per_weight * (setup.parameters - hidden)


def _narrow(net: TransformerConfig) -> TransformerConfig:
    """The model at a width that can be measured, with heads of the same size."""
    factor = math.ceil(net.d_model / WIDEST)
    if factor == 1:
        return net
    keys = max(1, net.kv_heads // factor)
    return replace(
        net,
        d_model=net.d_model // factor,
        d_ff=max(1, net.feed_forward_size // factor),
        head_dim=net.head_size,
        num_kv_heads=keys,
        num_heads=keys * (net.num_heads // net.kv_heads),
    )


def _fastest(step: Callable[[], None], device: torch.device) -> float:
    """Seconds of the fastest of a few runs."""
    best = math.inf
    for number in range(1 + REPETITIONS):
        start = _now(device)
        step()
        best = min(best, _now(device) - start) if number else best
    return best


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
