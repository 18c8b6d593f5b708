"""What is wrong with the options of a data module."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from lit_lm.data.order import WindowOrder, weight_problems
from lit_lm.tokenizer.train import special_token_problems

MIN_MAX_WORKERS = 64
"""Worker processes that every machine may start."""
MIN_VAL_FRACTION = 1e-6
MAX_BUFFER = 10_000_000


def option_problems(
    sources: Mapping[str, Any],
    *,
    val_fraction: float,
    val_tokens: int,
    tokenizer: str | None,
    special_tokens: Sequence[str],
    batch_size: int,
    micro_batch_size: int | None,
    context_length: int,
    stride: int | None,
    window_order: WindowOrder,
    num_workers: int,
    streaming: bool,
    shuffle_buffer: int,
    num_streams: int,
) -> list[str]:
    """What is wrong with options of LMDataModule, a line each; `sources` are the sources with their weights."""
    problems = []
    positive = {"batch_size": batch_size, "micro_batch_size": micro_batch_size, "num_streams": num_streams}
    positive |= {"val_tokens": val_tokens}
    for name, value in (positive if window_order == "random" else positive | {"stride": stride}).items():
        if value is not None and value < 1:
            problems.append(f"{name} is {value}; it must be at least 1")
    if not problems and micro_batch_size and batch_size % micro_batch_size:
        problems.append(f"batch_size {batch_size} is not divisible by micro_batch_size {micro_batch_size}")
    for name, value, most in [
        ("num_workers", num_workers, max(MIN_MAX_WORKERS, os.cpu_count() or 1)),
        ("shuffle_buffer", shuffle_buffer, MAX_BUFFER),
    ]:
        if not 0 <= value <= most:
            problems.append(f"{name} is {value}; it must be between 0 and {most:,}")
    if not MIN_VAL_FRACTION <= val_fraction <= 0.5:
        problems.append(f"val_fraction is {val_fraction}; it must be between {MIN_VAL_FRACTION} and 0.5")
    if window_order == "random" and stride is not None:
        problems.append(f"stride is {stride}, but window_order random has no stride; leave it out")
    problems += _streaming_problems(sources, context_length, stride, window_order) if streaming else []
    problems += weight_problems(sources) + special_token_problems(special_tokens)
    if special_tokens and tokenizer is not None:
        problems.append(
            f"special_tokens has {', '.join(special_tokens)}, but tokenizer is given; pass them to lit-lm tokenizer "
            "train, or leave out one of the two"
        )
    return problems


def _streaming_problems(
    sources: Mapping[str, Any], context_length: int, stride: int | None, window_order: WindowOrder
) -> list[str]:
    problems = []
    if stride not in (None, context_length) or window_order != "shuffled":
        used = 1 if window_order == "random" else context_length if stride is None else stride
        problems.append(
            f"streaming does not support window_order {window_order} with stride {used}; "
            "leave both out (shuffle_buffer 0 keeps the order of the source)"
        )
    if len(sources) > 1:
        problems.append(f"source lists {len(sources)} sources, but streaming reads only one; pass one source")
    return problems
