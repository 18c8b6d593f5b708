"""Memory of a step by part, against the tensors of a real step."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from lit_lm import optim
from lit_lm.model import losses
from lit_lm.model.config import TransformerConfig
from lit_lm.model.transformer import Transformer
from lit_lm.optim import parameter_groups
from lit_lm.planning.memory import logits_chunk, optimizer_state, step_memory
from lit_lm.planning.setup import Setup

NET = TransformerConfig(vocab_size=300, context_length=16, d_model=16, num_layers=2, num_heads=2, tie_embeddings=True)
SETUP = Setup(NET, "AdamW", rows=4)


@pytest.mark.parametrize("name", ["AdamW", "Muon", "SGDDecay"])
def test_the_optimizers_state_is_that_of_a_real_one(name: str) -> None:
    model = Transformer(NET)
    optimizer = getattr(optim, name)(parameter_groups(model, model.hidden_matrices()))
    model(torch.zeros(1, 16, dtype=torch.long)).sum().backward()
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    tensors = [value for value in states if isinstance(value, torch.Tensor) and value.ndim]
    assert optimizer_state(replace(SETUP, optimizer=name)) == sum(tensor.nbytes for tensor in tensors)


def test_the_chunk_is_that_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_BYTES", 20_000)
    monkeypatch.setattr("lit_lm.planning.memory.CHUNK_BYTES", 20_000)
    seen: list[torch.Tensor] = []
    original = losses._chunk_loss

    def record(logits: torch.Tensor, *args: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        seen.append(logits)
        return original(logits, *args)

    monkeypatch.setattr(losses, "_chunk_loss", record)
    hidden, weight = torch.randn(64, 16), torch.randn(300, 16, requires_grad=True)
    losses.linear_cross_entropy(hidden, weight, torch.zeros(64, dtype=torch.long))
    assert len(seen) > 1
    assert logits_chunk(SETUP) == len(seen[0])


def by_place(net: Transformer) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The matrices of a block, and all that is not a matrix of a block."""
    matrices = [p for p in net.blocks[0].parameters() if p.ndim == 2]
    in_blocks = {p for block in net.blocks for p in block.parameters() if p.ndim == 2}
    return matrices, [p for p in net.parameters() if p not in in_blocks]


def test_weights_gradients_and_averages_are_divided_among_the_devices_but_one_block_and_the_ends() -> None:
    whole, part = step_memory(SETUP), step_memory(SETUP, shards=4)
    number = sum(p.numel() for p in Transformer(NET).parameters())
    assert (whole.weights, whole.gradients, whole.optimizer) == (4 * number, 4 * number, 8 * number)
    in_block, ends = (sum(p.numel() for p in parameters) for parameters in by_place(Transformer(NET)))
    assert part.weights == number + 4 * (in_block + ends)
    assert part.gradients == number + 4 * in_block
    assert part.optimizer == 2 * number
    assert (part.checkpoint, whole.checkpoint) == (3 * number, 0)
    assert (part.activations, part.logits) == (whole.activations, whole.logits)
    assert whole.total == sum(vars(whole).values())


def test_a_tensor_parallel_group_divides_matrices_and_vocabulary() -> None:
    part = step_memory(replace(SETUP, tensor_parallel=2))
    parameters = list(Transformer(NET).parameters())
    held = sum(p.numel() // (2 if p.ndim == 2 else 1) for p in parameters)
    assert part.optimizer == 8 * held
    in_block, ends = by_place(Transformer(NET))
    gathered = sum(p.numel() // 2 for p in in_block) + sum(p.numel() // (2 if p.ndim == 2 else 1) for p in ends)
    assert part.weights == 4 * (held + gathered)
    whole = step_memory(SETUP)
    assert whole.activations / 2 < part.activations < whole.activations  # the residual stream is not divided
    assert whole.logits / 2 < part.logits < whole.logits


def test_on_a_gpu_the_interpreter_takes_none_of_the_memory() -> None:
    assert step_memory(SETUP).libraries > 2**28
    assert step_memory(replace(SETUP, on_cpu=False)).libraries == 0
