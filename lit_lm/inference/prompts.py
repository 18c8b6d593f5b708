"""Prompts from files, and batches of prompts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_lm.inference.text import Text
from lit_lm.tokenizer.tokenizer import Tokenizer

OUTPUT_FIELDS = tuple(Text("", 0).row(0))
"""Fields that a prediction adds to those of its prompt."""

BATCHES_IN_STRETCH = 4
"""Number of batches per device in a stretch of prompts sorted by length. Predictions are written in the order of the
prompts, so those of a stretch wait for each other, and are lost on an interruption.
"""

MAX_PROMPT_BYTES = 2**20
"""Maximum size of a prompt: a million characters exceed every context, and would only take long to encode."""

PromptBatch = tuple[list[int], list[list[int]]]
"""Numbers of prompts (from 0), and their token ids."""


@dataclass(frozen=True)
class Prompt:
    """A text to continue."""

    text: str
    location: str
    """Source of the prompt: file and line."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Other fields of the prompt's line."""


def read_prompts(path: Path) -> list[Prompt]:
    """Return the prompts of a .txt file (one per line) or a .jsonl file (field `prompt` of each line).

    Empty lines are skipped.

    Raises:
        OSError: if the file cannot be read.
        ValueError: naming file and line, if a line is too long, is not UTF-8, is not an object with a string `prompt`,
            or has a field that predictions have.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"{path}: use a .txt file (one prompt per line) or a .jsonl file (field prompt of each line)")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file")
    prompts = []
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_PROMPT_BYTES + 1), b""), start=1):
            location = f"{path}, line {number}"
            text = decoded(line, location).removesuffix("\n").removesuffix("\r")
            if text.strip():
                prompts.append(Prompt(text, location) if path.suffix == ".txt" else _from_json(text, location))
    return prompts


def decoded(data: bytes, location: str) -> str:
    """Return a prompt as text.

    Raises:
        ValueError: naming its location, if it is too long or not UTF-8.
    """
    if len(data) > MAX_PROMPT_BYTES:
        raise ValueError(f"{location} has more than {MAX_PROMPT_BYTES:,} bytes, too many for a prompt")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{location} is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}") from None


def _from_json(line: str, location: str) -> Prompt:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{location} is not JSON ({error})") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("prompt"), str):
        raise ValueError(f'{location} is not an object with a string "prompt"')
    if taken := [name for name in OUTPUT_FIELDS if name in fields]:
        raise ValueError(f"{location} has the field {taken[0]!r}, which predict writes; rename it")
    text = fields.pop("prompt")
    try:
        json.dumps(fields, ensure_ascii=False).encode()  # as it will be written
    except UnicodeEncodeError:
        raise ValueError(f"{location}: a field is not Unicode text") from None
    return Prompt(text, location, fields)


def prompt_ids(
    prompts: Sequence[Prompt], tokenizer: Tokenizer, context_length: int, room: int | None
) -> list[list[int]]:
    """Return the ids of each prompt; for an empty prompt, the end-of-text token, after which a text begins.

    Raises:
        ValueError: naming a prompt that is not Unicode text, or leaves fewer than `room` tokens of the context free.
    """
    for prompt in prompts:
        try:
            prompt.text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{prompt.location}: the prompt is not Unicode text") from None
    ids = [row or [tokenizer.end_id] for row in tokenizer.encode_batch([prompt.text for prompt in prompts])]
    for prompt, row in zip(prompts, ids, strict=True):
        free = context_length - len(row)
        if room is not None and free < room:
            raise ValueError(
                f"{prompt.location}: a prompt of {len(row)} tokens and {room} new ones do not fit into "
                f"the context of {context_length}; the prompt leaves room for {max(0, free)}"
            )
    return ids


def length_batches(sizes: Sequence[int], first: int, batch_size: int, world_size: int) -> list[list[int]]:
    """Return batches of prompt numbers from `first` on: prompts of similar length together, nearly in order.

    Args:
        sizes: Number of tokens of each prompt.
        first: Number of the first prompt to continue.
        batch_size: Maximum number of prompts per batch.
        world_size: Number of devices, which take the batches in turn. The number of batches is a positive multiple of
            world_size; some batches may be empty.
    """
    stretch = batch_size * world_size * BATCHES_IN_STRETCH
    batches = []
    for start in range(first, len(sizes), stretch):
        numbers = sorted(range(start, min(start + stretch, len(sizes))), key=lambda number: sizes[number])
        batches += [numbers[i : i + batch_size] for i in range(0, len(numbers), batch_size)]
    return batches + [[]] * (-len(batches) % world_size if batches else world_size)
