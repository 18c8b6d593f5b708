"""Parameter groups for the optimizers."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn


def parameter_groups(module: nn.Module, hidden_matrices: Iterable[Tensor] = ()) -> list[dict[str, Any]]:
    """Return two parameter groups: weight decay for matrices and embeddings, none for norms and biases.

    Every parameter that requires a gradient is in exactly one group; a tensor shared by two layers counts once. Empty
    groups are left out.

    Args:
        module: The model.
        hidden_matrices: Matrices that map one hidden vector to another, whose updates `Muon` orthogonalizes. The first
            group's `muon` tells of each parameter whether it is one.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    hidden = {id(matrix) for matrix in hidden_matrices}
    decayed = [p for p in parameters if p.ndim >= 2]
    exempt = [p for p in parameters if p.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "muon": [id(p) in hidden for p in decayed]},
        {"params": exempt, "weight_decay": 0.0},
    ]
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(map(id, parameters))
    return [group for group in groups if group["params"]]
