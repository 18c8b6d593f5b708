"""A new run that starts from the weights of a checkpoint."""

from collections.abc import Mapping
from dataclasses import fields, replace

import torch
from torch import Tensor

from lit_lm.model.config import TransformerConfig
from lit_lm.model.transformer import Transformer
from lit_lm.tokenizer.tokenizer import Tokenizer

MAY_DIFFER = {"dropout", "zero_init"}
"""Fields of the config that the weights do not depend on."""


def shape_problems(there: TransformerConfig, here: TransformerConfig) -> list[str]:
    """Why a model cannot start from the weights of another one.

    Its vocabulary may be larger, and its context may have another length if positions are rotary.
    """
    there, here = _resolved(there), _resolved(here)
    free = MAY_DIFFER | ({"context_length"} if there.positions == "rope" else set())
    if here.vocab_size > there.vocab_size:
        free |= {"vocab_size"}
    return [
        f"model.net.{field.name} is {getattr(here, field.name)}, but {getattr(there, field.name)} in the checkpoint of "
        "init_from; leave it out"
        for field in fields(TransformerConfig)
        if field.name not in free and getattr(there, field.name) != getattr(here, field.name)
    ]


def _resolved(config: TransformerConfig) -> TransformerConfig:
    """The config with the values that its nulls stand for."""
    qkv_bias = config.bias if config.qkv_bias is None else config.qkv_bias
    return replace(
        config,
        num_kv_heads=config.kv_heads,
        head_dim=config.head_size,
        d_ff=config.feed_forward_size,
        qkv_bias=qkv_bias,
    )


def tokenizer_problems(there: Tokenizer, here: Tokenizer) -> list[str]:
    """Why a model trained with one tokenizer cannot start with another: ids must keep their tokens."""
    known = min(there.vocab_size, here.vocab_size)
    changed = [number for number in range(known) if there.token(number) != here.token(number)]
    if not changed and known == there.vocab_size:
        return []
    return [
        f"data.tokenizer differs from the tokenizer of init_from (it has {here.vocab_size:,} tokens, not "
        f"{there.vocab_size:,}; {len(changed):,} ids have another token); leave it out, or pass one that only adds some"
    ]


@torch.no_grad()
def load_weights(net: Transformer, weights: Mapping[str, Tensor]) -> None:
    """Copy the weights of a checkpoint into a model; further rows of embedding and head keep their initial values.

    Raises:
        ValueError: if the model, which may be of a user's own class, has other parameters.
    """
    state = net.state_dict()
    if differ := sorted(weights.keys() ^ state.keys()):
        raise ValueError(f"the checkpoint of init_from does not fit the model: only one of them has {differ[0]}")
    for name, weight in weights.items():
        if weight.shape[1:] != state[name].shape[1:] or len(weight) > len(state[name]):
            raise ValueError(
                f"the checkpoint of init_from does not fit the model: {name} is {list(weight.shape)} in the "
                f"checkpoint, and {list(state[name].shape)} in the model"
            )
        state[name][: len(weight)].copy_(weight)
