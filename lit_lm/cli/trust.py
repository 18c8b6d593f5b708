"""What a checkpoint, which may come from a stranger, must not bring into the options of a command.

`Checkpoint.config` has already refused classes that are neither known nor named by the user.
"""

from collections.abc import Mapping, Set
from typing import Any

from jsonargparse import Namespace

from lit_lm.data.find_tokenizer import absolute_tokenizer
from lit_lm.data.sources import is_remote


def check_texts(content: Mapping[str, Mapping[str, Any]], options: Namespace, given: Set[str]) -> None:
    """Refuse a text of a checkpoint that the parser has read as a mapping, which can name a class.

    Args:
        content: The checkpoint's config.
        options: The options that were parsed with it.
        given: Dotted names of the options that the user gave.

    Raises:
        ValueError: if there is such a text.
    """
    for section in ("model", "data"):
        for name, value in content[section].items():
            full = f"{section}.{name}"
            is_given = any(each == full or each.startswith(f"{full}.") for each in given)
            if isinstance(value, str) and isinstance(options[section].get(name), dict | Namespace) and not is_given:
                raise ValueError(
                    f"the checkpoint's {full} is a text that would be read as a mapping, which is not trusted; "
                    f"pass --{full}"
                )


def check_addresses(own: Namespace, options: Namespace, *, tokenizer: bool) -> None:
    """Refuse to fetch data, and the tokenizer unless the checkpoint contains it, from places that only the checkpoint
    names.

    Args:
        own: The user's options.
        options: The options that were parsed with the checkpoint's config.
        tokenizer: Whether the tokenizer would be fetched.

    Raises:
        ValueError: if there are such places.
    """
    named, places = {*_places(own), own.data.tokenizer}, _places(options)
    if tokenizer and isinstance(options.data.tokenizer, str):
        places.append(absolute_tokenizer(options.data.tokenizer))
    if fetched := [place for place in places if is_remote(place) and place not in named]:
        raise ValueError(
            f"the checkpoint's data is at {', '.join(fetched)}; pass --allow_fetch true to fetch it, or another "
            "--data.source"
        )


def _places(options: Namespace) -> list[str]:
    """The sources in a config, as strings."""
    source, val_source = options.data.source, options.data.val_source
    names = list(source) if isinstance(source, dict) and "class_path" not in source else [source]
    return [name for name in (*names, val_source) if isinstance(name, str)]
