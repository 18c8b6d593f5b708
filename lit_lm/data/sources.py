"""Where documents come from: the bundled stories, the Hugging Face hub, local files.

A source is named by one word or path (`--data.source`):

    stories             the bundled story grammar; no file, no network
    stories-zh          the same in Chinese
    tinystories         the hub's roneneldan/TinyStories
    hub:NAME            any data set of the hub, or a folder laid out like one
    a path or a glob    .txt (documents separated by <|endoftext|>, else the whole file), .jsonl, .parquet,
                        .npy and .bin of token ids

What has no validation split of its own has a fraction held out from it. Nothing ever falls back to other data.
"""

import glob
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import resources
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lit_lm.data import stories
from lit_lm.text.tokenizer import END_OF_TEXT

Split = Literal["train", "validation"]
Ids = npt.NDArray[np.int64]
BUNDLED = {"stories": "en", "stories-zh": "zh"}
"""The bundled stories, and the language of each."""
TINYSTORIES = "hub:roneneldan/TinyStories"
TEXT_SUFFIXES = (".txt", ".jsonl", ".parquet")
ID_SUFFIXES = (".npy", ".bin")
STORIES_BYTES: dict[Split, int] = {"train": 3_000_000, "validation": 150_000}
BLOCK_BYTES = 2**20
BLOCK_IDS = 2**20


@dataclass(frozen=True)
class TextSource:
    """A stream of documents that can be read again and again."""

    documents: Callable[[], Iterator[str]]
    fingerprint: str
    """Changes whenever the documents may have changed."""


@dataclass(frozen=True)
class IdSource:
    """A stream of token ids in blocks, END_OF_TEXT already among them."""

    blocks: Callable[[], Iterator[Ids]]
    fingerprint: str
    """Changes whenever the ids may have changed."""


Source = TextSource | IdSource


def open_sources(
    source: str,
    val_source: str | None,
    *,
    val_fraction: float,
    text_field: str,
    bin_dtype: str,
    training: bool = True,
) -> dict[Split, Source]:
    """The training and the validation source. Nothing is read yet, but what is missing is missed here.

    Args:
        source: Where the training documents come from, as in the module's docstring.
        val_source: The same for validation; None: the source's own validation split, or else `val_fraction` of it.
        val_fraction: Share held out where there is no validation split: of the documents; of the tail if there is
            only one, or token ids.
        text_field: Name of the text in .jsonl, .parquet and hub data sets.
        bin_dtype: Type of the ids in .bin files, uint16 or int32.
        training: Whether the training source is wanted too.

    Raises:
        FileNotFoundError: if a path or glob names no file.
        ValueError: if a file's kind is not known.
        ConnectionError: if the hub cannot be reached or does not have the data set.
    """
    open_split = partial(_open, text_field=text_field, bin_dtype=bin_dtype)
    if val_source is not None:
        whole, split = open_split(val_source)
        validation: dict[Split, Source] = {"validation": split or whole}
        return validation | {"train": open_split(source)[0]} if training else validation
    train, own_validation = open_split(source)
    if own_validation is not None:
        return {"train": train, "validation": own_validation}
    return {"train": _part(train, "train", val_fraction), "validation": _part(train, "validation", val_fraction)}


def absolute(source: str) -> str:
    """The source with a relative path made absolute, so that it means the same from any working directory."""
    if source in (*BUNDLED, "tinystories") or source.startswith("hub:"):
        return source
    return str(Path(source).expanduser().absolute())


def _open(source: str, *, text_field: str, bin_dtype: str) -> tuple[Source, Source | None]:
    """A source and its own validation split, if it has one."""
    if language := BUNDLED.get(source):
        return _bundled("train", language), _bundled("validation", language)
    if source == "tinystories":
        source = TINYSTORIES
    if source.startswith("hub:"):
        return _hub(source.removeprefix("hub:"), text_field)
    return _files(source, text_field, bin_dtype), None


def _bundled(split: Split, language: str) -> TextSource:
    num_bytes = STORIES_BYTES[split]
    names = ("stories.py", f"stories_{language}.yaml")
    version = [hashlib.sha256(resources.files("lit_lm.data").joinpath(name).read_bytes()).hexdigest() for name in names]
    documents = partial(stories.stories, split, num_bytes, language=language)
    return TextSource(documents, _digest(*version, split, str(num_bytes)))


def _hub(name: str, text_field: str) -> tuple[TextSource, TextSource | None]:
    import datasets  # takes a second to import, and only this source needs it

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of every attempt; the last one is enough
    try:
        builder = datasets.load_dataset_builder(name)
        splits = builder.info.splits or datasets.get_dataset_split_names(name)
    except Exception as error:  # network, hub and loader each raise their own
        raise _unreachable(name, error) from None
    if "train" not in splits:
        raise ValueError(f"the data set {name} has no split train, only {list(splits)}")

    def documents(split: str) -> Iterator[str]:
        try:
            for row in builder.as_streaming_dataset(split=split):
                if (text := _text(row, text_field, f"hub:{name}")).strip():
                    yield text
        except (OSError, ConnectionError) as error:
            raise _unreachable(name, error) from None

    def split_source(split: str) -> TextSource:
        return TextSource(partial(documents, split), _digest("hub", name, str(builder.hash), split, text_field))

    return split_source("train"), split_source("validation") if "validation" in splits else None


def _unreachable(name: str, error: Exception) -> ConnectionError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ConnectionError(
        f"the data set {name} could not be loaded from the Hugging Face hub ({reason})\n"
        "use a local file instead (--data.source FILE.txt) or the bundled stories (--data.source stories)"
    )


def _files(pattern: str, text_field: str, bin_dtype: str) -> Source:
    pattern = str(Path(pattern).expanduser())
    matches = [pattern] if Path(pattern).is_file() else glob.glob(pattern, recursive=True)
    paths = sorted(Path(match) for match in matches if Path(match).is_file())
    if not paths:
        known = "a path or glob, stories, stories-zh, tinystories, or hub:NAME"
        raise FileNotFoundError(f"there is no file {pattern}; data.source can be {known}")
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    suffixes = {path.suffix.lower() for path in paths}
    if suffixes <= set(TEXT_SUFFIXES):
        fingerprint = _digest("text", json.dumps(stats), text_field)
        return TextSource(partial(_text_files, paths, text_field), fingerprint)
    if suffixes <= set(ID_SUFFIXES):
        return IdSource(partial(_id_files, paths, bin_dtype), _digest("ids", json.dumps(stats), bin_dtype))
    allowed = f"text ({', '.join(TEXT_SUFFIXES)}) or token ids ({', '.join(ID_SUFFIXES)}), not both"
    found = ", ".join(sorted(suffix or "(no suffix)" for suffix in suffixes))
    raise ValueError(f"{pattern} has files of kind {found}; a source is of {allowed}")


def _text_files(paths: list[Path], text_field: str) -> Iterator[str]:
    readers: dict[str, Callable[[Path], Iterator[str]]] = {
        ".txt": _read_txt,
        ".jsonl": partial(_read_jsonl, text_field),
        ".parquet": partial(_read_parquet, text_field),
    }
    documents = chain.from_iterable(readers[path.suffix.lower()](path) for path in paths)
    return (document for document in documents if document.strip())


def _read_txt(path: Path) -> Iterator[str]:
    separator = END_OF_TEXT.encode()
    start, pending, separated = 0, bytearray(), False  # `pending` is what was read from byte `start` on
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            searched = max(0, len(pending) - len(separator) + 1)  # once is enough, or a long document takes forever
            pending += block
            while (end := pending.find(separator, searched)) >= 0:
                separated = True
                yield _decode(pending[:end], path, start).strip()
                del pending[: end + len(separator)]
                start += end + len(separator)
                searched = 0
    text = _decode(pending, path, start)
    yield text.strip() if separated else text


def _decode(document: bytearray, path: Path, start: int) -> str:
    try:
        return document.decode("utf-8")
    except UnicodeDecodeError as error:
        at = start + error.start
        raise ValueError(f"{path} is not UTF-8: byte {at} is 0x{document[error.start]:02x}") from None


def _read_jsonl(text_field: str, path: Path) -> Iterator[str]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{where} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{where} is not a JSON object")
            yield _text(row, text_field, where)


def _read_parquet(text_field: str, path: Path) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise ValueError(f"{path} is not a parquet file: {error}") from None
    if text_field not in file.schema_arrow.names:
        raise _no_text(file.schema_arrow.names, text_field, str(path))
    for batch in file.iter_batches(batch_size=1024, columns=[text_field]):
        for row in batch.to_pylist():
            yield _text(row, text_field, str(path))


def _text(row: dict[str, Any], text_field: str, where: str) -> str:
    if text_field not in row:
        raise _no_text(list(row), text_field, where)
    text = row[text_field]
    if not isinstance(text, str):
        raise ValueError(f"{where}: {text_field} is {text!r}, not a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: {text_field} is not Unicode text: {error.reason}") from None
    return text


def _no_text(fields: list[str], text_field: str, where: str) -> ValueError:
    return ValueError(f"{where} has no field {text_field!r}, only {fields}; choose one by --data.text_field")


def _id_files(paths: list[Path], bin_dtype: str) -> Iterator[Ids]:
    for path in paths:
        ids = _open_ids(path, bin_dtype)
        for start in range(0, len(ids), BLOCK_IDS):
            yield ids[start : start + BLOCK_IDS].astype(np.int64)


def _open_ids(path: Path, bin_dtype: str) -> npt.NDArray[Any]:
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    try:
        is_npy = path.suffix.lower() == ".npy"
        ids = np.lib.format.open_memmap(path, mode="r") if is_npy else np.memmap(path, bin_dtype, "r")
    except ValueError as error:  # also what numpy raises for a pickle
        raise ValueError(f"{path} is not a file of token ids: {error}") from None
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"{path} holds {ids.dtype} of shape {ids.shape}; token ids are a row of integers")
    return ids


def _part(source: Source, split: Split, fraction: float) -> Source:
    fingerprint = _digest(source.fingerprint, split, str(fraction))
    if isinstance(source, TextSource):
        return TextSource(lambda: _part_of_documents(source.documents(), split, fraction), fingerprint)
    return IdSource(lambda: _part_of_ids(source, split, fraction), fingerprint)


def _part_of_documents(documents: Iterator[str], split: Split, fraction: float) -> Iterator[str]:
    """Every k-th document is held out, k = 1/fraction; of fewer than k the last; of a single one the tail."""
    k = max(2, round(1 / fraction))
    first = list(islice(documents, k))
    if len(first) == 1:
        cut = int(len(first[0]) * (1 - fraction))
        yield first[0][:cut] if split == "train" else first[0][cut:]
        return
    for number, document in enumerate(chain(first, documents), start=1):
        held_out = number % k == 0 if len(first) == k else number == len(first)
        if held_out == (split == "validation"):
            yield document


def _part_of_ids(source: IdSource, split: Split, fraction: float) -> Iterator[Ids]:
    total = sum(len(block) for block in source.blocks())
    cut, start = int(total * (1 - fraction)), 0
    for block in source.blocks():
        here = min(max(cut - start, 0), len(block))
        yield block[:here] if split == "train" else block[here:]
        start += len(block)


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
