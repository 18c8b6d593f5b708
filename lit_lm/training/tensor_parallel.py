"""Tensor parallelism: the processes of a group share the heads, the neurons and the vocabulary (Shoeybi et al. 2019).

Each process computes with its part of the weights, and with all positions. In a block, the first projections give its
heads or neurons, and the outputs of the second ones are summed over the processes. So there are two all-reduces in a
block's forward pass and two in its backward pass. Everything else is computed by all processes alike.

The layers here replace those of `lit_lm.model.layers`; their weights are DTensors, of which they use the local part.
"""

from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from lit_lm.model.layers import Embedding, Linear, RMSNorm, rms_norm
from lit_lm.model.transformer import Block, Transformer


def divide_block(block: Block, mesh: DeviceMesh) -> None:
    """Replace the layers of a block by those that hold this process's heads and neurons."""
    attention, feed_forward = block.attention, block.feed_forward
    for module, inner in ((attention, ("q_proj", "k_proj", "v_proj")), (feed_forward, ("gate_proj", "up_proj"))):
        for name in inner:
            if (layer := getattr(module, name)) is not None:
                setattr(module, name, _ColumnLinear(_part(layer.weight, mesh, 0), _part(layer.bias, mesh, 0)))
        module.register_forward_pre_hook(lambda _, inputs: (_copied(inputs[0], mesh), *inputs[1:]))
    for name in ("q_norm", "k_norm"):
        if (norm := getattr(attention, name)) is not None:
            setattr(attention, name, _HeadNorm(norm, mesh))
    attention.o_proj = _RowLinear(attention.o_proj, mesh)
    feed_forward.down_proj = _RowLinear(feed_forward.down_proj, mesh)


def divide_vocabulary(net: Transformer, mesh: DeviceMesh) -> None:
    """Replace embedding and head by layers that hold this process's rows."""
    tied = net.head.weight is net.embedding.weight
    net.embedding = _VocabularyEmbedding(net.embedding, mesh)
    net.head = _Head(net.embedding.weight if tied else _part(net.head.weight, mesh, 0))


class _ColumnLinear(Linear):
    """Some outputs of a Linear: rows of the weight."""

    weight: Any
    bias: Any

    def __init__(self, weight: Any, bias: Any = None) -> None:
        nn.Module.__init__(self)
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x @ self.weight.to_local().T
        return y if self.bias is None else y + self.bias.to_local().to(y.dtype)


class _Head(_ColumnLinear):
    """The head. In training, the loss reads its weight and never needs all logits."""

    def forward(self, x: Tensor) -> Tensor:
        mesh = self.weight.device_mesh
        logits = super().forward(_copied(x, mesh))
        return DTensor.from_local(logits, mesh, [Shard(-1)], run_check=False).full_tensor()


class _RowLinear(Linear):
    """A Linear for some inputs, columns of the weight, summed over the processes."""

    weight: Any

    def __init__(self, layer: Linear, mesh: DeviceMesh) -> None:
        nn.Module.__init__(self)
        self.weight, self.bias = _part(layer.weight, mesh, 1), layer.bias

    def forward(self, x: Tensor) -> Tensor:
        y = _summed(x @ self.weight.to_local().T, self.weight.device_mesh)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _HeadNorm(RMSNorm):
    """The norm of all heads' queries or keys: each process has the gradient from its own heads."""

    def __init__(self, norm: RMSNorm, mesh: DeviceMesh) -> None:
        nn.Module.__init__(self)
        self.weight, self.eps, self.mesh = norm.weight, norm.eps, mesh

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, _copied(self.weight, self.mesh), self.eps)


class _VocabularyEmbedding(Embedding):
    """The embedding of some token ids; that of the others is zero, and is added by the processes that hold it."""

    weight: Any

    def __init__(self, embedding: Embedding, mesh: DeviceMesh) -> None:
        nn.Module.__init__(self)
        self.weight = _part(embedding.weight, mesh, 0)

    def forward(self, ids: Tensor) -> Tensor:
        weight, mesh = self.weight.to_local(), self.weight.device_mesh
        here = ids // len(weight) == mesh.get_local_rank()
        rows = weight.index_select(0, (ids % len(weight)).flatten()).view(*ids.shape, -1)
        return _summed(rows.where(here.unsqueeze(-1), 0), mesh)


def _part(whole: Any, mesh: DeviceMesh, dim: int) -> Any:
    """This process's part of a parameter, which all processes hold, along a dimension; None of None."""
    if whole is None:
        return None
    part = distribute_tensor(whole.detach(), mesh, [Shard(dim)], src_data_rank=None)
    return nn.Parameter(part, requires_grad=whole.requires_grad)


def _copied(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """x, which is equal on all processes, as the input of parts: its gradient is the sum of theirs."""
    return DTensor.from_local(x, mesh, [Replicate()], run_check=False).to_local(grad_placements=[Partial()])


def _summed(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """Sum over the processes, each of which gets its gradient."""
    return DTensor.from_local(x, mesh, [Partial()], run_check=False).redistribute(placements=[Replicate()]).to_local()
