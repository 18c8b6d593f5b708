"""The bytes kept for the backward pass, against those that autograd saves."""

from itertools import product
from typing import Any, get_args

import pytest
import torch

from lit_lm.model.config import MLP, Norm, Positions, TransformerConfig
from lit_lm.model.transformer import Transformer
from lit_lm.planning.activations import kept_activations
from lit_lm.planning.setup import Setup

GPT2 = {"norm": "layernorm", "mlp": "gelu", "positions": "learned", "bias": True}
VARIANTS: list[dict[str, Any]] = [
    *(
        {"norm": norm, "mlp": mlp, "positions": positions}
        for norm, mlp, positions in product(get_args(Norm), get_args(MLP), get_args(Positions))
    ),
    {"num_kv_heads": 2},
    {"head_dim": 12, "num_kv_heads": 1, "qk_norm": True},
    {"bias": True, "qk_norm": True},
    {"dropout": 0.1},
    {**GPT2, "dropout": 0.1, "num_kv_heads": 2},
]


def saved(setup: Setup) -> int:
    """Bytes that autograd saves between the ids and the head's input, without the parameters and buffers."""
    model = Transformer(setup.net)
    model.recompute_blocks = setup.checkpointing
    ids = torch.randint(setup.net.vocab_size, (setup.rows, setup.net.context_length))
    documents = (ids == 0).cumsum(dim=1) if setup.document_mask else None
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    found: dict[int, torch.Tensor] = {}  # keeps the tensors, so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim:  # not the seed of dropout
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=setup.bfloat16),
    ):
        features = model.features(ids, documents=documents)
    assert features.requires_grad
    return sum(tensor.untyped_storage().nbytes() for address, tensor in found.items() if address not in own)


def setup_of(changes: dict[str, Any], **options: Any) -> Setup:
    sizes = {"vocab_size": 40, "context_length": 32, "d_model": 64, "num_layers": 2, "num_heads": 4, "d_ff": 96}
    return Setup(TransformerConfig(**{**sizes, **changes}), "AdamW", rows=3, **options)


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_kept_bytes_are_those_that_autograd_saves(changes: dict[str, Any], bfloat16: bool) -> None:
    setup = setup_of(changes, bfloat16=bfloat16)
    assert kept_activations(setup) == saved(setup)


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("changes", [{}, GPT2], ids=str)
def test_the_starts_of_documents_are_kept_once(changes: dict[str, Any], bfloat16: bool) -> None:
    setup = setup_of(changes, bfloat16=bfloat16, document_mask=True)
    assert kept_activations(setup) == saved(setup)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_checkpointing_keeps_the_inputs_of_the_blocks_and_what_one_block_needs(bfloat16: bool) -> None:
    """During the forward pass only the inputs; in the backward pass also what one block keeps when computed again."""
    setup = setup_of({"num_layers": 3}, bfloat16=bfloat16, checkpointing=True)
    one, two = (kept_activations(setup_of({"num_layers": layers}, bfloat16=bfloat16)) for layers in (1, 2))
    assert kept_activations(setup) == pytest.approx(saved(setup) + two - one, rel=0.02)
