"""Which part of a tensor each process holds."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.tensor import Shard

from lit_lm.optim.sharded import places_of


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("rows", [12, 10, 2])
def test_tensor_parallelism_divides_first_then_fully_shard_the_rows(dim: int, rows: int) -> None:
    whole = torch.arange(rows * 6).view(rows, 6)
    mesh = SimpleNamespace(shape=(3, 2))
    tensor: Any = SimpleNamespace(device_mesh=mesh, placements=(Shard(0), Shard(dim)), shape=whole.shape, ndim=2)
    halves = [torch.tensor_split(half, [-(-len(half) // 3), 2 * -(-len(half) // 3)]) for half in whole.chunk(2, dim)]
    expected = [halves[column][row] for row in range(3) for column in range(2)]
    found = [whole[place] for place in places_of(tensor)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
