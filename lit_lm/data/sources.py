"""Where documents come from: the bundled stories, the Hugging Face hub, local files.

A source is named by one word or path (`--data.source`):

    stories             the bundled story grammar; no file, no network
    tinystories         the hub's roneneldan/TinyStories
    hub:NAME            any data set of the hub, or a folder laid out like one
    a path or a glob    .txt (documents separated by <|endoftext|>, else the whole file) and .jsonl, either also
                        as .gz or .zst; .parquet; .npy and .bin of token ids

What has no validation split of its own has a fraction held out from it. Nothing ever falls back to other data.
"""

import glob
import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from lit_lm.data import stories
from lit_lm.text.tokenizer import END_OF_TEXT

Split = Literal["train", "validation"]
Ids = npt.NDArray[np.int64]
TINYSTORIES = "hub:roneneldan/TinyStories"
TEXT_SUFFIXES = (".txt", ".jsonl", ".parquet")
COMPRESSED_SUFFIXES = (".gz", ".zst")
ID_SUFFIXES = (".npy", ".bin")
STORIES_BYTES: dict[Split, int] = {"train": 3_000_000, "validation": 150_000}
BLOCK_BYTES = 2**20
BLOCK_IDS = 2**20
HUB_ROWS = 100
HELD_OUT_FROM = 100_000


@dataclass(frozen=True)
class Shard:
    """A part of a source that can be read alone, again and again, and in another process."""

    name: str
    version: str
    """What tells its text from another under that name: the size of a file, the digest of a data set."""
    documents: Callable[[], Iterator[str]]


@dataclass(frozen=True)
class TextSource:
    """A stream of documents that can be read again and again."""

    shards: tuple[Shard, ...]
    fingerprint: str
    """Changes whenever the documents may have changed."""

    def documents(self) -> Iterator[str]:
        """The documents of all shards, one shard after the other."""
        return chain.from_iterable(shard.documents() for shard in self.shards)


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
    streaming: bool = False,
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
        streaming: Whether the source is too large to be read through for what is held out, so that it comes from the
            first HELD_OUT_FROM documents of the first shard.

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
    splits: tuple[Split, Split] = ("train", "validation")
    if streaming and isinstance(train, TextSource):
        return {split: _part_of_first_shard(train, split, val_fraction) for split in splits}
    return {split: _part(train, split, val_fraction) for split in splits}


def absolute(source: str) -> str:
    """The source with a relative path made absolute, so that it means the same from any working directory."""
    if source in ("stories", "tinystories") or source.startswith("hub:"):
        return source
    return str(Path(source).expanduser().absolute())


def _open(source: str, *, text_field: str, bin_dtype: str) -> tuple[Source, Source | None]:
    """A source and its own validation split, if it has one."""
    if source == "stories":
        train, validation = _bundled("train"), _bundled("validation")
        return train, validation
    if source == "tinystories":
        source = TINYSTORIES
    if source.startswith("hub:"):
        return _hub(source.removeprefix("hub:"), text_field)
    return _files(source, text_field, bin_dtype), None


def _bundled(split: Split) -> TextSource:
    num_bytes = STORIES_BYTES[split]
    written_in = [resources.files("lit_lm.data").joinpath(name) for name in ("stories.py", "stories_en.yaml")]
    version = [hashlib.sha256(file.read_bytes()).hexdigest() for file in written_in]
    fingerprint = _digest(*version, split, str(num_bytes))
    return TextSource((Shard("stories", fingerprint, partial(stories.stories, split, num_bytes)),), fingerprint)


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

    def split_source(split: str) -> TextSource:
        try:
            dataset = builder.as_streaming_dataset(split=split)
            if text_field in (dataset.column_names or []):  # else the reading will tell what there is
                dataset = dataset.select_columns([text_field])
        except Exception as error:
            raise _unreachable(name, error) from None
        shards = tuple(
            Shard(f"{name}, {split}, shard {i}", str(builder.hash), partial(_hub_shard, dataset, i, name, text_field))
            for i in range(dataset.num_shards)
        )
        return TextSource(shards, _digest("hub", name, str(builder.hash), split, text_field))

    return split_source("train"), split_source("validation") if "validation" in splits else None


def _hub_shard(dataset: Any, index: int, name: str, text_field: str) -> Iterator[str]:
    # by batches: iterated by rows in a DataLoader's worker, it would share itself out among the workers
    batches = dataset.shard(num_shards=dataset.num_shards, index=index).iter(batch_size=HUB_ROWS)
    while True:
        try:
            batch = next(batches, None)
        except Exception as error:
            raise _unreachable(name, error) from None
        if batch is None:
            return
        if text_field not in batch:
            raise _no_text(list(batch), text_field, f"hub:{name}")
        documents = (_text({text_field: text}, text_field, f"hub:{name}") for text in batch[text_field])
        yield from (document for document in documents if document.strip())


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
        known = "a path or glob, stories, tinystories, or hub:NAME"
        raise FileNotFoundError(f"there is no file {pattern}; data.source can be {known}")
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    suffixes = {_suffix(path) for path in paths}
    if suffixes <= set(TEXT_SUFFIXES):
        shards = [Shard(path.name, str(path.stat().st_size), partial(_text_file, path, text_field)) for path in paths]
        return TextSource(tuple(shards), _digest("text", json.dumps(stats), text_field))
    if suffixes <= set(ID_SUFFIXES):
        return IdSource(partial(_id_files, paths, bin_dtype), _digest("ids", json.dumps(stats), bin_dtype))
    allowed = f"text ({', '.join(TEXT_SUFFIXES)}) or token ids ({', '.join(ID_SUFFIXES)}), not both"
    found = ", ".join(sorted(suffix or "(no suffix)" for suffix in suffixes))
    raise ValueError(f"{pattern} has files of kind {found}; a source is of {allowed}")


def _suffix(path: Path) -> str:
    """What kind of file it is, under its compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compressed = len(suffixes) > 1 and suffixes[-1] in COMPRESSED_SUFFIXES and suffixes[-2] in (".txt", ".jsonl")
    return suffixes[-2] if compressed else path.suffix.lower()


def _text_file(path: Path, text_field: str) -> Iterator[str]:
    readers: dict[str, Callable[[Path], Iterator[str]]] = {
        ".txt": _read_txt,
        ".jsonl": partial(_read_jsonl, text_field),
        ".parquet": partial(_read_parquet, text_field),
    }
    return (document for document in readers[_suffix(path)](path) if document.strip())


@contextmanager
def _decompressed(path: Path) -> Iterator[BinaryIO]:
    if path.suffix.lower() not in COMPRESSED_SUFFIXES:
        with open(path, "rb") as file:
            yield file
        return
    import pyarrow as pa

    try:  # pyarrow's reader, unlike zstandard's, notices that a file was cut off
        with pa.input_stream(str(path)) as stream, io.BufferedReader(stream, BLOCK_BYTES) as file:
            yield file
    except OSError as error:
        raise ValueError(f"{path} cannot be read to its end: {error}") from None


def _read_txt(path: Path) -> Iterator[str]:
    separator = END_OF_TEXT.encode()
    start, pending, separated = 0, bytearray(), False  # `pending` is what was read from byte `start` on
    with _decompressed(path) as file:
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
    with _decompressed(path) as file:
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
        documents = partial(_held_out, source.documents, split, fraction)
        return TextSource((Shard(split, fingerprint, documents),), fingerprint)
    return IdSource(lambda: _part_of_ids(source, split, fraction), fingerprint)


def _part_of_first_shard(source: TextSource, split: Split, fraction: float) -> TextSource:
    first, *rest = source.shards
    parted = replace(first, documents=partial(_held_out, first.documents, split, fraction, HELD_OUT_FROM))
    shards = (parted, *rest) if split == "train" else (parted,)
    return TextSource(shards, _digest(source.fingerprint, split, str(fraction), "first shard"))


def _held_out(
    documents: Callable[[], Iterator[str]], split: Split, fraction: float, limit: int | None = None
) -> Iterator[str]:
    """A split of the first `limit` documents; those after them are training's."""
    stream = documents()
    yield from _part_of_documents(islice(stream, limit), split, fraction)
    if split == "train":
        yield from stream


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
