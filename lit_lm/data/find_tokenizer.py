"""Loading a tokenizer from where an option says it is (`--data.tokenizer`):

a file or folder          in one of the formats of `lit_lm.tokenizer.formats`
vocab.json,merges.txt     GPT-2's format in two files of any name and place
hub:NAME                  the tokenizer of a model on the Hugging Face hub
gpt2                      hub:openai-community/gpt2, unless a file or folder has this name
"""

import logging
from pathlib import Path

from lit_lm.data.filesystem import address
from lit_lm.errors import first_line
from lit_lm.files import expand_home
from lit_lm.tokenizer.tokenizer import Tokenizer

HUB = "hub:"
ALIASES = {"gpt2": "hub:openai-community/gpt2"}
HUB_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model", "*.tiktoken", "added_tokens.json",
             "tokenizer_config.json")  # fmt: skip
SECONDS = 5
"""Time to wait for an answer of the hub."""


def absolute_tokenizer(where: str, folder: Path = Path()) -> str:
    """Make the paths in `where` absolute; relative ones are relative to `folder`.

    Raises:
        ValueError: if a path is too long, or begins with the home folder of an unknown user.
    """
    if where.startswith(HUB):
        return where
    path = address(where, folder)
    if Path(path).exists():
        return path
    if where in ALIASES:
        return ALIASES[where]
    return ",".join(address(part, folder) for part in _two_files(where, folder) or (where,))


def load_tokenizer(where: str) -> Tokenizer:
    """Load the tokenizer of an option.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it cannot be used.
        ConnectionError: if the hub cannot be reached.
    """
    place = absolute_tokenizer(where)
    if place.startswith(HUB):
        return _from_hub(place.removeprefix(HUB))
    if not Path(place).exists() and (files := _two_files(place)) is not None:
        return Tokenizer.load(*files)
    return Tokenizer.load(expand_home(where))


def _two_files(where: str, folder: Path = Path()) -> tuple[str, str] | None:
    """The two paths in `where`: those of files or, if there are none, before and after the first comma."""
    commas = [number for number, letter in enumerate(where) if letter == ","]
    pairs = [(where[:comma], where[comma + 1 :]) for comma in commas]
    exist = (pair for pair in pairs if all(Path(address(path, folder)).is_file() for path in pair))
    return next(exist, pairs[0] if pairs else None)


def _from_hub(name: str) -> Tokenizer:
    from huggingface_hub import snapshot_download  # takes half a second to import
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs every failed attempt
    try:
        # unlike the download of a single file, fails at once without a network, and then looks in its cache
        folder = snapshot_download(name, allow_patterns=[*HUB_FILES], etag_timeout=SECONDS)
    except Exception as error:  # network and hub raise different types
        raise ConnectionError(
            f"the tokenizer of {name} could not be loaded from the Hugging Face hub ({first_line(error)}); "
            "pass the path of a local one, or leave it out to train one"
        ) from None
    try:
        return Tokenizer.load(folder)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"the model {name} on the Hugging Face hub has no tokenizer that lit-lm can read "
            "(tokenizer.json, vocab.json with merges.txt, tokenizer.model or .tiktoken)"
        ) from None
