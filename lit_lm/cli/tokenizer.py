"""`lit-lm tokenizer train | encode | decode | info`: commands for tokenizers, which do not import torch.

In text, documents are separated by <|endoftext|>; in ids, each document is a line of numbers separated by spaces.
Nothing is added or stripped, so `encode` followed by `decode` returns the same bytes.
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import BinaryIO, get_args

from tqdm import tqdm

from lit_lm.cli.options import Parser
from lit_lm.data.find_tokenizer import load_tokenizer
from lit_lm.data.readers import BadDocuments
from lit_lm.data.sources import TextSource, open_sources
from lit_lm.files import expand_home, write_text
from lit_lm.model.config import TransformerConfig
from lit_lm.tokenizer.tokenizer import END_OF_TEXT, Tokenizer
from lit_lm.tokenizer.train import TokenizerType

BLOCK_BYTES = 2**16
COLORS = ("\033[30;46m", "\033[30;43m", "\033[30;42m", "\033[30;45m")
PLAIN = "\033[0m"
NUM_LONGEST = 10
COMMANDS = ("train", "encode", "decode", "info")


def run(args: Sequence[str], description: str) -> None:
    """Run `lit-lm tokenizer ...`.

    Raises:
        ValueError, OSError: if the arguments, or the files they name, are invalid.
    """
    options = make_parser(description).parse_args(args[1:])
    options.function(options)


def make_parser(description: str) -> Parser:
    """The parser of the command; its help starts with `description`."""
    parser = Parser("lit-lm tokenizer", description=description)
    commands = parser.add_subparsers(required=True, metavar="|".join(COMMANDS))

    def command(name: str, function: Callable[[argparse.Namespace], None], what: str) -> Parser:
        added = commands.add_parser(name, help=what, description=what)
        added.set_defaults(function=function)
        return added

    kinds = (
        "a tokenizer.json, a folder with vocab.json and merges.txt, the two as vocab.json,merges.txt, a SentencePiece "
        ".model, a .tiktoken file, hub:NAME, or gpt2"
    )
    train = command("train", _train, "train a tokenizer on text")
    train.add_argument("source", nargs="+", help="text to train on, as in data.source: stories, hub:NAME, path or glob")
    train.add_argument(
        "--vocab_size", type=int, default=TransformerConfig.vocab_size, help="number of tokens (default: %(default)s)"
    )
    train.add_argument(
        "--tokenizer_type", choices=get_args(TokenizerType), default="bpe", help="(default: %(default)s)"
    )
    train.add_argument(
        "--special_tokens", nargs="+", default=[], metavar="NAME", help="markup in the text, such as '<|user|>'"
    )
    train.add_argument("--output", type=Path, default=Path("tokenizer.json"), help="(default: %(default)s)")
    train.add_argument("--text_field", default="text", help="field with the text in .jsonl, .parquet and hub datasets")

    encode = command("encode", _encode, f"convert text (documents separated by {END_OF_TEXT}) to ids (one line each)")
    decode = command("decode", _decode, f"convert ids (a line per document) to text (separated by {END_OF_TEXT})")
    for filtering in (encode, decode):
        filtering.add_argument("tokenizer", help=kinds)
        filtering.add_argument("file", nargs="*", type=Path, help="files to read (default: standard input)")

    info = command("info", _info, "print statistics of a tokenizer on a text")
    info.add_argument("tokenizer", nargs="?", help=kinds)
    info.add_argument("--compare", nargs=2, metavar=("A", "B"), help="compare two tokenizers side by side")
    info.add_argument("--on", default="stories", help="text to measure on, as for train (default: %(default)s)")
    info.add_argument("--text", help="text to show split into tokens")
    info.add_argument("--text_field", default="text", help="as for train")
    return parser


def _train(options: argparse.Namespace) -> None:
    output = expand_home(options.output)  # fail before any work is done
    documents = chain.from_iterable([_documents(source, options.text_field) for source in options.source])
    shown = tqdm(
        documents, desc="training the tokenizer", unit=" documents", unit_scale=True, leave=False, disable=None
    )
    tokenizer = Tokenizer.train(shown, options.vocab_size, options.tokenizer_type, options.special_tokens)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, tokenizer.to_json())
    print(f"{output}: {options.tokenizer_type}, {tokenizer.vocab_size:,} tokens")


def _encode(options: argparse.Namespace) -> None:
    tokenizer = load_tokenizer(options.tokenizer)
    with closing(_inputs(options.file)) as inputs:
        texts = chain.from_iterable(_split_text(file, name) for file, name in inputs)
        for ids in tokenizer.encode_iterable(texts):
            sys.stdout.write(" ".join(map(str, ids)) + "\n")


def _decode(options: argparse.Namespace) -> None:
    tokenizer = load_tokenizer(options.tokenizer)
    separator = ""
    with closing(_inputs(options.file)) as inputs:
        for file, name in inputs:
            for number, line in enumerate(file, start=1):
                text = tokenizer.decode(_ids(line, tokenizer.vocab_size, f"{name}, line {number}"))
                sys.stdout.buffer.write((separator + text).encode())
                separator = END_OF_TEXT


def _inputs(files: Sequence[Path]) -> Generator[tuple[BinaryIO, str], None, None]:
    """Each file and its name; without files, standard input."""
    if not files:
        yield sys.stdin.buffer, "standard input"
    for path in files:
        with open(path, "rb") as file:
            yield file, str(path)


def _split_text(file: BinaryIO, name: str) -> Iterator[str]:
    """Split a file at END_OF_TEXT, without changing any other byte."""
    separator = END_OF_TEXT.encode()
    start, pending = 0, bytearray()
    while block := file.read(BLOCK_BYTES):
        searched = max(0, len(pending) - len(separator) + 1)
        pending += block
        while (end := pending.find(separator, searched)) >= 0:
            yield _text(pending[:end], start, name)
            del pending[: end + len(separator)]
            start += end + len(separator)
            searched = 0
    yield _text(pending, start, name)


def _text(document: bytearray, start: int, name: str) -> str:
    try:
        return document.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8: byte {start + error.start} is 0x{document[error.start]:02x}") from None


def _ids(line: bytes, vocab_size: int, where: str) -> list[int]:
    ids = []
    for word in line.split():
        if not word.isdigit() or int(word) >= vocab_size:
            shown = word[:40].decode(errors="replace")
            raise ValueError(f"{where}: {shown!r} is not an id of this tokenizer; ids are 0 to {vocab_size - 1}")
        ids.append(int(word))
    return ids


def _documents(source: str, text_field: str) -> Iterator[str]:
    opened = open_sources(source, source, val_fraction=0.5, text_field=text_field, bin_dtype="uint16")["train"]
    if not isinstance(opened, TextSource):
        raise ValueError(f"{source} contains token ids; this command needs a text source")
    return opened.texts(BadDocuments())


def _info(options: argparse.Namespace) -> None:
    if (options.tokenizer is None) == (options.compare is None):
        raise ValueError("pass one tokenizer, or two with --compare")
    paths = options.compare or [options.tokenizer]
    tokenizers = [load_tokenizer(path) for path in paths]
    columns = [_facts(tokenizer, _documents(options.on, options.text_field)) for tokenizer in tokenizers]
    rows = [["", *paths], *([name, *(column[name] for column in columns)] for name in columns[0])]
    rows += [["longest tokens" if i == 0 else "", *row] for i, row in enumerate(zip(*map(_longest, tokenizers)))]  # noqa: B905
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if options.text is not None:
        for path, tokenizer in zip(paths, tokenizers, strict=True):
            ids = tokenizer.encode(options.text)
            print(f"\n{path}: {len(ids)} tokens\n{_painted(_pieces(tokenizer, ids))}")


def _facts(tokenizer: Tokenizer, documents: Iterable[str]) -> dict[str, str]:
    """Column of the table for a tokenizer."""
    bytes_ = characters = 0
    used: Counter[int] = Counter()

    def counted() -> Iterator[str]:
        nonlocal bytes_, characters
        for document in documents:
            bytes_ += len(document.encode())
            characters += len(document)
            yield document

    for ids in tokenizer.encode_iterable(counted()):
        used.update(ids)
    tokens = max(1, used.total())
    return {
        "type": tokenizer.type,
        "tokens": f"{tokenizer.vocab_size:,}",
        "special tokens": " ".join(f"{token} {number}" for token, number in tokenizer.special_tokens.items()),
        "text": f"{bytes_:,} bytes, {used.total():,} tokens",
        "bytes per token": f"{bytes_ / tokens:.3f}",
        "characters per token": f"{characters / tokens:.3f}",
        "unused": f"{tokenizer.vocab_size - len(used | {tokenizer.end_id: 1}):,}",
    }


def _longest(tokenizer: Tokenizer) -> list[str]:
    special = set(tokenizer.special_tokens.values())
    texts = {tokenizer.decode([token]) for token in range(tokenizer.vocab_size) if token not in special}
    return [json.dumps(text, ensure_ascii=False) for text in sorted(texts, key=lambda t: (-len(t), t))[:NUM_LONGEST]]


def _pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """Text of each token in context; for a part of a character, the token's name."""
    pieces = []
    for i, token in enumerate(ids):
        before = ids[max(0, i - 1) : i]
        piece = tokenizer.decode([*before, token])[len(tokenizer.decode(before)) :]
        name = tokenizer.token(token)
        pieces.append(name if "\ufffd" in piece or name.startswith("<0x") else piece)
    return pieces


def _painted(pieces: list[str]) -> str:
    """Pieces in alternating colors on a terminal, else separated by |."""
    visible = ["".join(c if c.isprintable() else ascii(c)[1:-1] for c in piece) for piece in pieces]
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return "|".join(visible)
    return "".join(f"{COLORS[i % len(COLORS)]}{piece}{PLAIN}" for i, piece in enumerate(visible))
