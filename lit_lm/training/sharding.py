"""FSDP2: each process holds some rows of every parameter, of its gradient and of the optimizer's averages.

The parameters of a block are gathered while it computes (Rajbhandari et al. 2020, stage 3; torch's `fully_shard`);
embedding, last norm and head are gathered for the whole step, because the loss reads the head's weight.
"""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.constants import default_pg_timeout
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lit_lm.model.layers import rope_table
from lit_lm.model.transformer import Block, Transformer, init_weights
from lit_lm.optim.sharded import rows_before


class FullyShardedStrategy(ModelParallelStrategy):
    """Shards LitLM's Transformer over all processes of the Trainer (FSDP2).

    Checkpoints are those of one process: any number of processes, sharded or not, resumes from them.
    """

    def __init__(self, process_group_backend: str | None = None, timeout: timedelta = default_pg_timeout) -> None:
        """
        Args:
            process_group_backend: nccl or gloo; null: the one that suits the devices.
            timeout: Time after which a process that does not answer is taken for lost.
        """
        super().__init__(tensor_parallel_size=1, process_group_backend=process_group_backend, timeout=timeout)

    def setup_environment(self) -> None:
        """Connect the processes; all of them share the model."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether the Trainer calls `load_optimizer_state_dict`: true, because `load_checkpoint` loads nothing."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights, sharded."""
        assert self.model is not None
        return self.model.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state of an optimizer, sharded."""
        return getattr(optimizer, "_optimizer", optimizer).state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; all processes take part (training/joint_write.py)."""
        self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint; the other methods copy this process's part of it."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load this process's part of the weights of a checkpoint."""
        assert self.lightning_module is not None
        parts = self.lightning_module.state_dict()
        weights = {name: _part_like(parts[name], whole) for name, whole in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(weights, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this process's part of the state of the optimizers of a checkpoint."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            numbered = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
            state = {
                number: {name: _part_like(numbered.get(number), value) for name, value in values.items()}
                for number, values in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})


def mesh_of(strategy: Strategy) -> DeviceMesh | None:
    """The processes over which a strategy shards the model; None: it does not.

    Raises:
        ValueError: if it shards in another way than FullyShardedStrategy.
    """
    if isinstance(strategy, FullyShardedStrategy):
        return strategy.device_mesh["data_parallel"]
    if isinstance(strategy, ModelParallelStrategy | FSDPStrategy):
        raise ValueError(
            f"LitLM cannot be trained with {type(strategy).__name__}; to shard it, use FullyShardedStrategy: "
            "--trainer configs/strategies/fsdp.yaml"
        )
    return None


def shard(
    net: Transformer, mesh: DeviceMesh, seed: int, compile: bool = False, dtype: torch.dtype | None = None
) -> None:
    """Shard a model over the processes of `mesh`, block by block.

    A model on the meta device is allocated and initialized, with the weights that it would have in one process: at any
    time, a process holds no more than its part, and one block, embedding and head whole.

    Args:
        net: The model, whole or on the meta device.
        mesh: The processes.
        seed: Seed of the initial weights.
        compile: Compile the blocks.
        dtype: Type in which the weights of blocks are gathered and used; None: their own.
    """
    config, on_meta = net.config, net.embedding.weight.is_meta
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in _parts(net):
            if on_meta:
                init_weights(part.to_empty(device="cpu"), config.num_layers, config.zero_init)
            if isinstance(part, Block):
                if compile:
                    part.compile(dynamic=False)
                fully_shard(part, mesh=mesh, mp_policy=policy)
    if on_meta and config.tie_embeddings:
        net.head.weight = net.embedding.weight
    if on_meta and net.position_embedding is None:
        net.rope_cos, net.rope_sin = rope_table(config.context_length, config.head_size, config.rope_theta)
    fully_shard(net, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(net, "features")


def _parts(net: Transformer) -> list[nn.Module]:
    """The parts of a model with parameters of their own, in the order in which they are initialized."""
    parts = [
        net.embedding,
        net.position_embedding,
        *net.blocks,
        net.norm,
        None if net.config.tie_embeddings else net.head,
    ]
    return [part for part in parts if part is not None]


def _part_like(parameter: Any, whole: Any) -> Any:
    """The part of `whole` that this process holds, if `parameter` is sharded and of its shape; else `whole`."""
    if isinstance(parameter, DTensor) and isinstance(whole, Tensor) and whole.shape == parameter.shape:
        start, number = rows_before(parameter), len(parameter.to_local())
        part = whole[start : start + number].to(parameter.device, copy=True)  # reads no more than this of a mapped file
        mesh, placements = parameter.device_mesh, parameter.placements
        return DTensor.from_local(part, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride())
    return whole
