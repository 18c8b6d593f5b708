"""Memory of a training step per device, by part."""

import math
from dataclasses import asdict, dataclass

from lit_lm.model.cost import hidden_matrix_parameters
from lit_lm.model.losses import CHUNK_BYTES
from lit_lm.planning.activations import kept_activations
from lit_lm.planning.setup import Setup

LIBRARIES = 500 * 2**20
"""Bytes of the interpreter with its libraries in a process of `lit-lm fit` on a CPU."""
COMPILER = 130 * 2**20
"""Bytes of torch.compile in that process."""
KEPT_ACTIVATIONS = {"swiglu": 0.82, "gelu": 0.3, "gelu_erf": 0.3}
"""Bytes that malloc holds in addition, on a CPU, for each byte of an eager step's activations, by feed-forward.

Fitted, as the next two are, to the peaks of twelve runs of two or three steps. An operation's temporary tensors leave
holes into which an aligned tensor of the same size does not fit (glibc 2.36). An eager GELU keeps its intermediate
results.
"""
KEPT_COMPILED = 0.5
"""The same for a compiled step, at most."""
KEPT_LOGITS = 0.3
"""The same for each byte of logits."""
KEPT_ON_GPU = 0.1
"""The same for the allocator of a GPU, of all bytes of a step: assumed."""


@dataclass(frozen=True)
class Memory:
    """Bytes per device."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    """Logits of a chunk, their gradient, and the gradients of the head's weight and input."""
    allocator: int
    """Kept by the allocator: memory of operations that is free again, and fragments."""
    checkpoint: int
    """The state's copy that is written in the background, under FSDP2; 0 on a GPU, where it is in the CPU's memory."""
    libraries: int
    """Of the interpreter with its libraries; 0 on a GPU."""

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


def step_memory(setup: Setup, shards: int = 1) -> Memory:
    """Memory of a step.

    Args:
        setup: How the model is trained.
        shards: Devices among which FSDP2 divides weights, gradients and the optimizer's state: those of the model, or,
            with tensor parallelism, of the same part of it.
    """
    sharded, setup = shards > 1 or setup.tensor_parallel > 1, setup.part
    weights = gradients = held = 4 * setup.parameters // shards
    if sharded:
        block = gathered_block(setup)
        weights += 4 * (setup.parameters - hidden_matrix_parameters(setup.net)) + block  # and embedding, norms, head
        gradients += block  # the head's gradient is among the logits; the embedding's follows when activations are free
    state = optimizer_state(setup) // shards
    activations, logits = kept_activations(setup), logits_memory(setup)
    if not setup.on_cpu:
        kept = KEPT_ON_GPU * (activations + logits)
    elif sharded:
        kept = 0.0  # fitted to six runs; why there are no fragments is not known
    else:
        share = KEPT_ACTIVATIONS[setup.net.mlp]
        kept = (min(share, KEPT_COMPILED) if setup.compiled else share) * activations + KEPT_LOGITS * logits
    # an update finds the memory of activations and logits free
    allocator = max(int(kept), optimizer_memory(setup) // shards - activations - logits)
    libraries = (LIBRARIES + COMPILER * setup.compiled) if setup.on_cpu else 0
    checkpoint = held + state if sharded and setup.on_cpu else 0
    return Memory(weights, gradients, state, activations, logits, allocator, checkpoint, libraries)


def gathered_block(setup: Setup) -> int:
    """Bytes of the weights of a block that a process gathers under FSDP2, and of their gradients."""
    return (2 if setup.bfloat16 else 4) * hidden_matrix_parameters(setup.net) // setup.net.num_layers


def optimizer_state(setup: Setup) -> int:
    """Bytes of the averages that the optimizer keeps, in float32. An unknown optimizer counts as AdamW."""
    per_weight = {"SGDDecay": 0, "SGD": 0}.get(setup.optimizer, 2)
    averages = per_weight * setup.parameters
    if setup.optimizer == "Muon":
        averages -= hidden_matrix_parameters(setup.net)  # one average instead of two
    return 4 * averages


def optimizer_memory(setup: Setup) -> int:
    """Bytes that an update allocates: Muon's copies of the matrices of one shape that are due at once."""
    if setup.optimizer != "Muon":
        return 0
    net = setup.net
    d, queries, keys = net.d_model, net.num_heads * net.head_size, net.kv_heads * net.head_size
    inward = net.num_layers * (2 if net.mlp == "swiglu" else 1)
    groups = [(inward, net.feed_forward_size, d), (net.num_layers * (3 if keys == queries else 1), queries, d)]
    # direction, and three in bfloat16 while they are orthogonalized, with three products of the short side
    return max(math.ceil(n / setup.period) * (10 * rows * cols + 6 * min(rows, cols) ** 2) for n, rows, cols in groups)


def logits_chunk(setup: Setup) -> int:
    """Positions whose logits the loss holds at a time."""
    size = 2 if setup.bfloat16 else 4
    return math.ceil(setup.num_tokens / math.ceil(setup.num_tokens * setup.net.vocab_size * size / CHUNK_BYTES))


def logits_memory(setup: Setup) -> int:
    """Bytes that the loss takes: see `lit_lm.model.losses`."""
    net, chunk = setup.net, logits_chunk(setup) * setup.net.vocab_size
    head = net.vocab_size * net.d_model
    needed = 4 * setup.num_tokens * net.d_model + 4 * head  # gradients
    if not setup.bfloat16:
        return needed + 4 * chunk
    casts = 2 * setup.num_tokens * net.d_model + 2 * head
    copies = 4 if setup.compiled else 8  # of a chunk, also in float32
    return needed + casts + max(copies * chunk, 2 * chunk + 2 * head)  # then the gradient's product with the input
