"""Bytes that autograd keeps from the forward pass for the backward pass, by layer.

Counted from the layers of `lit_lm.model`; the tests compare with what autograd saves. Under autocast, activations in
matrix products are bfloat16, and the residual stream is float32. An eager projection keeps a cast copy of its own, and
an eager GELU its intermediate results; a compiled step computes these again.
"""

from lit_lm.model.config import TransformerConfig
from lit_lm.model.cost import hidden_matrix_parameters
from lit_lm.planning.setup import Setup


def kept_activations(setup: Setup) -> int:
    """Bytes kept from the forward pass up to the head's input."""
    net, layers = setup.net, setup.net.num_layers
    size = 2 if setup.bfloat16 else 4
    casts = 2 * hidden_matrix_parameters(net) if setup.bfloat16 else 0
    stream = 4 * net.d_model
    last = _norm(net) + 8  # the latter are the ids
    if setup.document_mask:  # the starts of the documents, and positions
        last += 16 if net.positions == "learned" else 8
    last += stream if net.dropout else 0
    block = _attention(setup, size) + _feed_forward(setup, size)
    if setup.checkpointing:  # one block at a time is computed again
        return setup.num_tokens * (layers * stream + last) + setup.num_tokens * block + casts // layers
    return setup.num_tokens * (layers * block + last) + casts


def _norm(net: TransformerConfig) -> int:
    return 4 + 4 * net.d_model * (2 if net.norm == "layernorm" else 1)


def _attention(setup: Setup, size: int) -> int:
    """Bytes per token that the first half of a block keeps."""
    net = setup.net
    queries, keys = net.num_heads * net.head_size, net.kv_heads * net.head_size
    copies = 3 if setup.bfloat16 and not setup.compiled else 1  # of the normed stream, for q, k and v
    kept = _norm(net) + size * copies * net.d_model + size * queries  # the last is o_proj's input
    if net.qk_norm:
        kept += size * (queries + keys) + 4 * (net.num_heads + net.kv_heads)
    kept += size * (queries + 2 * keys) + (size * net.d_model if net.dropout else 0)
    if not setup.on_cpu:  # attention.c saves neither the logsumexp of the scores nor a mask
        kept += 4 * net.num_heads + (size * net.context_length if setup.document_mask else 0)
    return kept


def _feed_forward(setup: Setup, size: int) -> int:
    """Bytes per token that the second half of a block keeps."""
    net = setup.net
    copies = 2 if setup.bfloat16 and net.mlp == "swiglu" and not setup.compiled else 1
    inner = {"swiglu": 3, "gelu": 2 if setup.compiled else 5, "gelu_erf": 2 if setup.compiled else 4}[net.mlp]
    kept = _norm(net) + size * copies * net.d_model + size * inner * net.feed_forward_size
    return kept + (size * net.d_model if net.dropout else 0)
