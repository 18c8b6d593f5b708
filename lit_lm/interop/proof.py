"""The comparison of an exported model with its checkpoint."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lit_lm.checkpoint import Checkpoint
from lit_lm.model.config import TransformerConfig
from lit_lm.model.cost import skeleton
from lit_lm.model.layers import rope_table
from lit_lm.tokenizer.tokenizer import Tokenizer

CHECK_TEXT = (
    'Once upon a time, there was a little girl. 从前有一只小狗。 She said: "It\'s 3.14!"\n\n  def f(x): return x\n' * 4
)
"""Text whose logits are compared."""
HARD_TEXTS = (
    CHECK_TEXT,
    "  two  spaces\t\ttabs\n\n\nlines\r\n",
    "e\u0301 and \u00e9, \ufeff and \u200b, ﬁ and ½",
    "👩‍👩‍👧‍👦 🏳️‍🌈 العربية हिन्दी ไทย",
    "<|endoftext|> </s> [UNK] <0x0A> \u2581",
)
"""Texts whose token ids are compared."""
TOLERANCE = 1e-3
"""Largest difference of a logit, in float32, that rounding explains."""


def check_ids(checkpoint: Checkpoint) -> Tensor:
    """Ids (1, T) of CHECK_TEXT, as many as the model sees at once."""
    tokenizer = checkpoint.require_tokenizer()
    ids = tokenizer.encode(CHECK_TEXT) or [tokenizer.end_id]
    return torch.tensor([ids[: checkpoint.model["net"]["context_length"]]])


def expected_logits(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Tensor:
    """Logits (1, T, V) of `check_ids`, computed in float32 with the weights rounded to `dtype`."""
    config = TransformerConfig(**checkpoint.model["net"])
    return logits_of(config, check_ids(checkpoint), lambda name: checkpoint.weights[name].to(dtype).float())


def logits_of(config: TransformerConfig, ids: Tensor, weight: Callable[[str], Tensor]) -> Tensor:
    """Logits (1, T, V) of ids (1, T). Only the parameters of the module that computes are in memory.

    Args:
        config: Shape of the Transformer.
        ids: Token ids.
        weight: Returns a tensor of its state dict, in float32.
    """
    model = skeleton(config).eval()

    def fill(prefix: str, module: nn.Module, *_: Any) -> None:
        for name in dict(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(weight(f"{prefix}.{name}"), requires_grad=False))

    def empty(module: nn.Module, *_: Any) -> None:
        for name in dict(module.named_parameters(recurse=False)):
            setattr(module, name, None)  # an empty tensor would keep the memory from shrinking

    for prefix, module in model.named_modules():
        module.register_forward_pre_hook(partial(fill, prefix))
        module.register_forward_hook(empty)
    if model.position_embedding is None:
        model.rope_cos, model.rope_sin = rope_table(config.context_length, config.head_size, config.rope_theta)
    else:
        fill("position_embedding", model.position_embedding)  # the Transformer itself reads it
    with torch.no_grad():
        logits: Tensor = model(ids)
    return logits


@contextmanager
def computing_in_float32(model: nn.Module) -> Iterator[None]:
    """Let each module compute with its parameters in float32, whatever their data type.

    Only the parameters of the module that computes are in memory in float32.
    """
    stored: dict[nn.Parameter, Tensor] = {}

    def convert(module: nn.Module, _: Any) -> None:
        for parameter in module.parameters(recurse=False):
            stored[parameter] = parameter.data
            parameter.data = parameter.data.float()

    def restore(module: nn.Module, *_: Any) -> None:
        for parameter in module.parameters(recurse=False):
            parameter.data = stored.pop(parameter)

    hooks = [module.register_forward_pre_hook(convert) for module in model.modules()]
    hooks += [module.register_forward_hook(restore) for module in model.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def largest_difference(logits: Tensor, expected: Tensor) -> float:
    """The largest difference of a logit.

    Raises:
        ValueError: if it is larger than rounding explains.
    """
    difference = float((logits - expected).abs().max())
    if not difference < TOLERANCE:
        raise ValueError(f"the exported model computes something else: a logit differs by {difference:.1e}")
    return difference


def check_tokenizer(encode: Callable[[str], Sequence[int]], tokenizer: Tokenizer) -> None:
    """Compare the ids of HARD_TEXTS, and of the names of special tokens.

    Raises:
        ValueError: if `encode` gives others than the tokenizer.
    """
    for text in (*HARD_TEXTS, " ".join(tokenizer.special_tokens)):
        if list(encode(text)) != tokenizer.encode(text):
            raise ValueError(f"the exported tokenizer gives other ids for {text[:40]!r}")
