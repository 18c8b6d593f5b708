"""A speed test of this machine with the layers of the model that is planned, in about a second.

The blocks, the head with the loss, and the update are measured one by one, at a smaller size if they take long, and
scaled by their FLOPs or their number of weights.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from inspect import signature

import torch

from lit_lm.model.config import TransformerConfig
from lit_lm.model.cost import block_flops_per_token, flops_per_token, hidden_matrix_parameters
from lit_lm.model.layers import rope_table
from lit_lm.model.losses import linear_cross_entropy
from lit_lm.model.transformer import Block, init_weights
from lit_lm.optim.adamw import adamw_step
from lit_lm.optim.muon import Muon, muon_step
from lit_lm.planning.hardware import Hardware
from lit_lm.planning.memory import logits_chunk
from lit_lm.planning.setup import Setup

WORK = {False: 2.5e10, True: 6e10}
"""FLOPs of a run of the blocks, in float32 and in bfloat16: about a quarter of a second on two cores."""
SECONDS = 0.15
"""Time in which a part runs again and again."""
WIDEST, WIDEST_MUON = 1024, 512
"""Widest model that is measured, and whose update by Muon is; the products of wider ones are as efficient."""
UPDATED = 4_000_000
"""Weights of the blocks whose update is measured, at least one block."""
COMPILED = {False: 0.85, True: 0.9}
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
    blocks = block_flops_per_token(setup.net) * (4 / 3 if setup.checkpointing else 1)
    head = flops_per_token(setup.net) - block_flops_per_token(setup.net)
    return StepTime(tokens * blocks / rate, tokens * head / rate, 0.0)


def measured_step(setup: Setup, device: torch.device) -> StepTime:
    """Measure the parts of a step of eager training on this machine; a compiled one is assumed to be faster."""
    faster = COMPILED[setup.bfloat16] if setup.compiled else 1.0
    number = faster * setup.micro_batches
    again = 4 / 3 if setup.checkpointing else 1.0
    blocks, head = _block_seconds(setup, device), _head_seconds(setup, device)
    return StepTime(number * again * blocks, number * head, _update_seconds(setup, device))


def _block_seconds(setup: Setup, device: torch.device) -> float:
    """Seconds of both passes of all blocks for a micro-batch."""
    net, length = _narrow(setup.net, WIDEST), setup.net.context_length
    affordable = WORK[setup.bfloat16] * net.num_layers / block_flops_per_token(net)  # tokens through one block
    length = min(length, 1 << max(4, int(math.log2(affordable))))
    rows = max(1, min(setup.rows, int(affordable / length)))
    blocks = _blocks(net, affordable / length / rows, device)
    x = torch.randn(rows, length, net.d_model, device=device, requires_grad=True)
    rope = None
    if net.positions == "rope":
        cos, sin = rope_table(length, net.head_size, net.rope_theta)
        rope = cos.to(device), sin.to(device)

    def step() -> None:
        y = x
        with torch.autocast(device.type, torch.bfloat16, enabled=setup.bfloat16):
            for block in blocks:
                y = block(y, rope)
        y.backward(x.detach())  # type: ignore[no-untyped-call]

    measured = block_flops_per_token(replace(net, num_layers=len(blocks), context_length=length)) * rows * length
    seconds = _fastest(step, device)
    return seconds * block_flops_per_token(setup.net) * setup.num_tokens / measured


def _head_seconds(setup: Setup, device: torch.device) -> float:
    """Seconds of the head and the loss for a micro-batch."""
    net, tokens = _narrow(setup.net, WIDEST), logits_chunk(setup)
    affordable = WORK[setup.bfloat16] / 2 / (6 * net.d_model)  # logits
    vocabulary = max(1, min(net.vocab_size, int(affordable / tokens)))
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
    muon = setup.optimizer == "Muon"
    net = _narrow(setup.net, WIDEST_MUON if muon else WIDEST)
    blocks = _blocks(net, UPDATED * net.num_layers / hidden_matrix_parameters(net), device)
    matrices = [p.detach() for block in blocks for p in block.parameters() if p.ndim == 2]
    number = sum(p.numel() for p in matrices)
    gradients = [torch.ones_like(p) for p in matrices]
    means, squares = ([torch.zeros_like(p) for p in matrices] for _ in range(2))
    steps = [torch.zeros((), device=device) for _ in matrices]
    skip = torch.zeros((), device=device)

    def adamw_update() -> None:
        torch.nn.utils.get_total_norm(gradients)
        adamw_step(matrices, gradients, means, squares, steps, lr=0.0, beta1=0.9, beta2=0.95, eps=1e-8,
                   weight_decay=0.1, grad_scale=skip + 1, found_inf=skip)  # fmt: skip

    iterations = signature(Muon).parameters["newton_schulz_steps"].default

    def muon_updates() -> None:
        for turn in range(setup.period):
            torch.nn.utils.get_total_norm(gradients)
            muon_step(matrices, gradients, means, [turn] * len(matrices), lr=0.0, momentum=0.95, weight_decay=0.1,
                      newton_schulz_steps=iterations, period=setup.period,
                      grad_scale=skip + 1, found_inf=skip)  # fmt: skip

    per_weight = _fastest(adamw_update, device) / number
    if not muon:
        return per_weight * setup.parameters
    hidden = hidden_matrix_parameters(setup.net)
    wider = setup.net.d_model / net.d_model  # FLOPs of the orthogonalization per weight grow with the width
    seconds = _fastest(muon_updates, device) / setup.period
    return seconds / number * wider * hidden + per_weight * (setup.parameters - hidden)


def _blocks(net: TransformerConfig, most: float, device: torch.device) -> list[Block]:
    """At most so many blocks, at least one."""
    number = max(1, min(net.num_layers, int(most)))
    return [init_weights(Block(net).to(device), number) for _ in range(number)]


def _narrow(net: TransformerConfig, widest: int) -> TransformerConfig:
    """The model at a width that can be measured, with heads of the same size."""
    factor = math.ceil(net.d_model / widest)
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
    """Seconds of the fastest of the runs after the first."""
    step()
    best, begun = math.inf, time.perf_counter()
    while best == math.inf or time.perf_counter() - begun < SECONDS:
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
