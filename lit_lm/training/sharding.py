"""FSDP2: each process holds some rows of every parameter, of its gradient and of the optimizer's averages.

With tensor parallelism, it does so for the part of the model that its tensor-parallel group computes with it.

The parameters of a block are gathered while it computes (Rajbhandari et al. 2020, stage 3; torch's `fully_shard`);
embedding, last norm and head are gathered for the whole step, because the loss reads the head's weight.
"""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.constants import default_pg_timeout
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lit_lm.model.config import TransformerConfig, division_problems
from lit_lm.model.layers import rope_table
from lit_lm.model.transformer import Block, Transformer, init_weights
from lit_lm.optim.sharded import place_of
from lit_lm.training.tensor_parallel import divide_block, divide_vocabulary


class FullyShardedStrategy(ModelParallelStrategy):
    """Shards LitLM's Transformer over all processes of the Trainer (FSDP2), if wanted with tensor parallelism.

    Checkpoints are those of one process: any number of processes, sharded or not, resumes from them.
    """

    def __init__(
        self,
        tensor_parallel_size: int = 1,
        process_group_backend: str | None = None,
        timeout: timedelta = default_pg_timeout,
    ) -> None:
        """
        Args:
            tensor_parallel_size: Number of processes that compute each window together, with some of the heads, neurons
                and rows of the vocabulary each. Their GPUs should be on one machine, and well connected.
            process_group_backend: nccl or gloo; null: the one that suits the devices.
            timeout: Time after which a process that does not answer is taken for lost.

        Raises:
            ValueError: if `tensor_parallel_size` is less than 1.
        """
        if tensor_parallel_size < 1:
            raise ValueError(f"tensor_parallel_size is {tensor_parallel_size}; it must be at least 1")
        super().__init__(
            tensor_parallel_size=tensor_parallel_size, process_group_backend=process_group_backend, timeout=timeout
        )
        self.tensor_parallel_size = tensor_parallel_size

    def setup_environment(self) -> None:
        """Connect the processes; all of them share the model."""
        self._data_parallel_size = self.num_nodes * self.num_processes // self.tensor_parallel_size
        super().setup_environment()

    def setup_optimizers(self, trainer: Trainer) -> None:
        """Build the optimizers; with tensor parallelism, torch's must update one parameter after the other."""
        super().setup_optimizers(trainer)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            if self.tensor_parallel_size > 1 and "foreach" in group:
                group["foreach"] = False  # an operation takes no DTensors of two meshes, and norms are not divided

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


def mesh_of(trainer: Trainer, config: TransformerConfig) -> DeviceMesh | None:
    """The processes over which the strategy shards a model, (data_parallel, tensor_parallel); None: it does not.

    Raises:
        ValueError: if it shards in another way than FullyShardedStrategy, or cannot divide the model.
    """
    strategy = trainer.strategy
    if isinstance(strategy, FullyShardedStrategy):
        check_division(trainer, config)
        return strategy.device_mesh
    if isinstance(strategy, ModelParallelStrategy | FSDPStrategy):
        raise ValueError(
            f"LitLM cannot be trained with {type(strategy).__name__}; to shard it, use FullyShardedStrategy: "
            "--trainer configs/strategies/fsdp.yaml"
        )
    return None


def check_division(trainer: Trainer, config: TransformerConfig) -> None:
    """Check that tensor-parallel groups can share the processes, and each the model.

    Raises:
        ValueError: listing all that they cannot divide, one per line.
    """
    size = getattr(trainer.strategy, "tensor_parallel_size", 1)
    if problems := division_problems(config, size, trainer.world_size):
        raise ValueError("\n".join(problems))


def shard(
    net: Transformer, mesh: DeviceMesh, seed: int, compile: bool = False, dtype: torch.dtype | None = None
) -> None:
    """Shard a model over the processes of `mesh`, block by block.

    A model on the meta device is allocated and initialized, with the weights that it would have in one process: at any
    time, a process holds no more than its part, and one block, embedding and head whole.

    Args:
        net: The model, whole or on the meta device.
        mesh: The processes, (data_parallel, tensor_parallel).
        seed: Seed of the initial weights.
        compile: Compile the blocks.
        dtype: Type in which the weights of blocks are gathered and used; None: their own.
    """
    config, on_meta = net.config, net.embedding.weight.is_meta
    groups, group = mesh["data_parallel"], mesh["tensor_parallel"]
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in _parts(net):
            if on_meta:
                init_weights(part.to_empty(device="cpu"), config.num_layers, config.zero_init)
            if isinstance(part, Block):
                if group.size() > 1:
                    divide_block(part, group)
                if compile:
                    part.compile(dynamic=False)
                fully_shard(part, mesh=groups, mp_policy=policy)
    if on_meta and config.tie_embeddings:
        net.head.weight = net.embedding.weight
    if on_meta and net.position_embedding is None:
        net.rope_cos, net.rope_sin = rope_table(config.context_length, config.head_size, config.rope_theta)
    if group.size() > 1:
        divide_vocabulary(net, group)
    fully_shard(net, mesh=groups, reshard_after_forward=False)
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
        part: Any = torch.empty_like(parameter, dtype=whole.dtype)
        part.to_local().copy_(whole[place_of(parameter)])  # reads no more than this of a mapped file
        return part
    return whole
