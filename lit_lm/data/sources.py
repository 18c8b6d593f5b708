"""Where documents come from: the bundled stories, the Hugging Face hub, files, token stores.

A source is named by one word, path or address (`--data.source`):

    stories             the bundled story grammar; no file, no network
    stories-zh          the same in Chinese
    tinystories         the hub's roneneldan/TinyStories
    hub:NAME            any data set of the hub, or a folder laid out like one
    a path or a glob    .txt (documents separated by <|endoftext|>, else the whole file) and .jsonl, each also as .gz
                        or .zst; .parquet; .npy and .bin of token ids; a folder that `lit-lm prepare --output` wrote
    an address          the same at s3://, gs://, https:// or whatever else fsspec knows

What has no validation split of its own has a fraction held out from it. Nothing ever falls back to other data.

A source is read in units, each of which gives its documents without the others: that is how it can be prepared by
several processes, and gone on with after a kill.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from lit_lm.data import stories
from lit_lm.data.filesystem import UNIT_BYTES, File, Range, address, file_system, find_files, units
from lit_lm.data.ids import ID_SUFFIXES, IdRange, id_ranges, part_of_ids
from lit_lm.data.readers import SUFFIXES, BadDocuments, Piece, in_pieces, read, text_in

Split = Literal["train", "validation"]
HUB_ROWS = 100
"""Rows of a data set of the hub that are read at a time."""
BUNDLED = {"stories": "en", "stories-zh": "zh"}
"""The bundled stories, and the language of each."""
TINYSTORIES = "hub:roneneldan/TinyStories"
STORIES_BYTES: dict[Split, int] = {"train": 3_000_000, "validation": 150_000}

TextUnit = Callable[[BadDocuments], Iterator[Piece]]
"""Gives its documents, as often as it is asked; tells of those that cannot be read."""


@dataclass(frozen=True)
class TextSource:
    """Documents."""

    units: Sequence[TextUnit]
    fingerprint: str
    """Changes whenever the documents may have changed."""

    def texts(self, bad: BadDocuments) -> Iterator[str]:
        """The text of all documents in order; a long one may come in several pieces."""
        return (text for unit in self.units for text, _ in unit(bad))


@dataclass(frozen=True)
class IdSource:
    """Token ids, END_OF_TEXT already among them."""

    units: Sequence[IdRange]
    fingerprint: str
    """Changes whenever the ids may have changed."""


@dataclass(frozen=True)
class StoreSource:
    """A token store that is finished already."""

    address: str


Source = TextSource | IdSource | StoreSource


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
    """The training and the validation source. No document is read yet, but what is missing is missed here.

    Args:
        source: Where the training documents come from, as in the module's docstring.
        val_source: The same for validation; None: the source's own validation split, or else `val_fraction` of it.
        val_fraction: Share held out where there is no validation split: of the documents of each unit; of the tail if
            it has only one; of the tail of token ids.
        text_field: Name of the text in .jsonl, .parquet and hub data sets.
        bin_dtype: Type of the ids in .bin files, uint16 or int32.
        training: Whether the training source is wanted too.
        streaming: Whether the source is too large to be read through for what is held out; that then comes from its
            first unit.

    Raises:
        FileNotFoundError: if a path or glob names no file.
        ValueError: if a file's kind or an address's protocol is not known.
        ConnectionError: if the hub cannot be reached or does not have the data set.
    """
    open_split = partial(_open, text_field=text_field, bin_dtype=bin_dtype, streaming=streaming)
    if val_source is not None:
        whole, split = open_split(val_source)
        validation: dict[Split, Source] = {"validation": split or whole}
        return validation | {"train": open_split(source)[0]} if training else validation
    train, own_validation = open_split(source)
    if own_validation is not None:
        return {"train": train, "validation": own_validation}
    return {
        "train": _part(train, "train", val_fraction, streaming),
        "validation": _part(train, "validation", val_fraction, streaming),
    }


def absolute(source: str) -> str:
    """The source with a relative path made absolute, so that it means the same from any working directory."""
    if source in (*BUNDLED, "tinystories"):
        return source
    if source.startswith("hub:"):
        folder = Path(source.removeprefix("hub:")).expanduser()
        return f"hub:{folder.absolute()}" if folder.is_dir() else source
    return address(source)


def is_remote(source: str) -> bool:
    """Whether a source is read over a network, or from an address that may be anywhere."""
    if source.startswith("hub:"):
        return not Path(source.removeprefix("hub:")).expanduser().is_dir()
    return "://" in source or "::" in source


def _open(source: str, *, text_field: str, bin_dtype: str, streaming: bool) -> tuple[Source, Source | None]:
    """A source and its own validation split, if it has one."""
    if language := BUNDLED.get(source):
        return _bundled("train", language), _bundled("validation", language)
    if source == "tinystories":
        source = TINYSTORIES
    if source.startswith("hub:"):
        return _hub(source.removeprefix("hub:"), text_field)
    if (stores := _prepared(source)) is not None:
        return stores
    return _files(source, text_field, bin_dtype, streaming), None


def _bundled(split: Split, language: str) -> TextSource:
    num_bytes = STORIES_BYTES[split]
    written_in = [resources.files("lit_lm.data").joinpath(name) for name in ("stories.py", f"stories_{language}.yaml")]
    version = [hashlib.sha256(file.read_bytes()).hexdigest() for file in written_in]

    def documents(bad: BadDocuments) -> Iterator[Piece]:
        return ((story, True) for story in stories.stories(split, num_bytes, language=language))

    return TextSource([documents], _digest(*version, split, str(num_bytes)))


def _hub(name: str, text_field: str) -> tuple[TextSource, TextSource | None]:
    import datasets  # takes a second to import, and only this source needs it

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of every attempt; the last one is enough
    try:
        builder = datasets.load_dataset_builder(name)
        splits = builder.info.splits or datasets.get_dataset_split_names(name)
        if "train" not in splits:
            raise ValueError(f"the data set {name} has no split train, only {list(splits)}")
        rows = {
            split: builder.as_streaming_dataset(split=split) for split in splits if split in ("train", "validation")
        }
    except ValueError:
        raise
    except Exception as error:  # network, hub and loader each raise their own
        raise _unreachable(name, error) from None

    def split_source(split: str) -> TextSource:
        shards = range(rows[split].num_shards)
        fingerprint = _digest("hub", name, str(builder.hash), split, text_field)
        return TextSource([partial(_hub_shard, rows[split], shard, name, text_field) for shard in shards], fingerprint)

    return split_source("train"), split_source("validation") if "validation" in rows else None


def _hub_shard(dataset: Any, index: int, name: str, text_field: str, bad: BadDocuments) -> Iterator[Piece]:
    # by batches: iterated by rows in a DataLoader's worker, it would share itself out among the workers
    batches = dataset.shard(num_shards=dataset.num_shards, index=index).iter(batch_size=HUB_ROWS)
    number = 0
    while True:
        try:
            batch = next(batches, None)
        except Exception as error:
            raise _unreachable(name, error) from None
        if batch is None:
            return
        columns = list(batch)
        for row in zip(*batch.values(), strict=True):
            number += 1
            try:
                yield from in_pieces(text_in(dict(zip(columns, row, strict=True)), text_field))
            except ValueError as error:
                bad.add(partial("hub:{}, shard {}, row {}{}".format, name, index, number, error))


def _unreachable(name: str, error: Exception) -> ConnectionError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ConnectionError(
        f"the data set {name} could not be loaded from the Hugging Face hub ({reason})\n"
        "use a local file instead (--data.source FILE.txt) or the bundled stories (--data.source stories)"
    )


def _prepared(place: str) -> tuple[StoreSource, StoreSource] | None:
    """The stores of a folder that `lit-lm prepare --output` wrote."""
    if place.endswith((*SUFFIXES, *ID_SUFFIXES)) or any(letter in place for letter in "*?["):
        return None
    fs, path = file_system(place)
    if not fs.exists(f"{path}/train/meta.json"):
        return None
    return StoreSource(f"{address(place)}/train"), StoreSource(f"{address(place)}/validation")


def _files(pattern: str, text_field: str, bin_dtype: str, streaming: bool) -> Source:
    files = find_files(pattern)
    if not files:
        known = "a path, an address or a glob, stories, stories-zh, tinystories, or hub:NAME"
        raise FileNotFoundError(f"there is no file {pattern}; data.source can be {known}")
    stats = json.dumps([(file.name, file.size, file.version) for file in files])
    suffixes = {file.suffix for file in files}
    if suffixes <= set(SUFFIXES):
        fingerprint = _digest("text", stats, text_field, str(UNIT_BYTES), str(streaming))  # the units too
        return TextSource(_text_units(files, text_field, streaming), fingerprint)
    if suffixes <= set(ID_SUFFIXES):
        return IdSource(id_ranges(files, bin_dtype), _digest("ids", stats, bin_dtype))
    allowed = f"text ({', '.join(SUFFIXES)}) or token ids ({', '.join(ID_SUFFIXES)}), not both"
    found = ", ".join(sorted(suffix or "(no suffix)" for suffix in suffixes))
    raise ValueError(f"{pattern} has files of kind {found}; a source is of {allowed}")


def _text_units(files: Sequence[File], text_field: str, streaming: bool) -> list[TextUnit]:
    def unit(ranges: Sequence[Range], bad: BadDocuments) -> Iterator[Piece]:
        return chain.from_iterable(read(part, text_field, bad) for part in ranges)

    # a stream is read at several places at once, so it wants many units, a store not too many shards
    divided = [unit for file in files for unit in units([file])] if streaming else units(files)
    return [partial(unit, ranges) for ranges in divided]


def _part(source: Source, split: Split, fraction: float, streaming: bool) -> Source:
    assert not isinstance(source, StoreSource)
    if isinstance(source, IdSource):
        fingerprint = _digest(source.fingerprint, split, str(fraction))
        return IdSource(part_of_ids(source.units, fraction, train=split == "train"), fingerprint)
    parted: list[TextUnit] = [partial(_part_of_documents, unit, split, fraction) for unit in source.units]
    if streaming:
        parted = [parted[0], *source.units[1:]] if split == "train" else parted[:1]
    return TextSource(parted, _digest(source.fingerprint, split, str(fraction), str(streaming)))


def _part_of_documents(unit: TextUnit, split: Split, fraction: float, bad: BadDocuments) -> Iterator[Piece]:
    """Every k-th document is held out, k = 1/fraction; of fewer than k the last; of a single one the tail."""
    k = max(2, round(1 / fraction))
    if split == "validation":
        bad = BadDocuments(skip=bad.skip)  # training has counted them
    first = list(islice((ends for _, ends in unit(BadDocuments(skip=bad.skip)) if ends), k))
    if len(first) == 1:
        yield from _side_of_one(unit, split, fraction, bad)
        return
    number = 1
    for text, ends in unit(bad):
        held_out = number % k == 0 if len(first) == k else number == len(first)
        if held_out == (split == "validation"):
            yield text, ends
        number += ends


def _side_of_one(unit: TextUnit, split: Split, fraction: float, bad: BadDocuments) -> Iterator[Piece]:
    """The head of a single document, for training, or its tail."""
    left = int(sum(len(text) for text, _ in unit(BadDocuments(skip=bad.skip))) * (1 - fraction))
    for text, ends in unit(bad):
        head, rest = text[:left], text[left:]
        if split == "train" and head:
            yield head, ends or len(head) == left
        if split == "validation" and (rest or ends):
            yield rest, ends
        left -= len(head)


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
