"""Sources of documents: the bundled stories, the Hugging Face hub, files, token stores, your own classes.

A source is a name, a path, a URL or a class (`--data.source`):

    stories             the bundled story grammar, without files or network
    stories-zh          the same in Chinese
    tinystories         roneneldan/TinyStories from the hub
    hub:NAME            any dataset on the hub, or a local folder with the same layout
    hub:NAME:CONFIG     one of several configurations of a dataset
    a path or a glob    .txt (documents separated by <|endoftext|>, or one document per file) and .jsonl, both also as
                        .gz or .zst; .parquet; .npy and .bin with token ids
    a folder            its files of these types, or the output of `lit-lm prepare --output`
    a URL               the same at s3://, gs://, https:// or any other protocol of fsspec
    class_path          your own class, whose instances yield all documents each time they are iterated

If a source has no validation split, a fraction of it is held out. A source is never replaced by other data.

A source is read in independent shards, so several processes can prepare it, and an interrupted preparation can resume.
"""

import hashlib
import json
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module, resources
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, Literal

from lit_lm.data import stories
from lit_lm.data.filesystem import (
    SHARD_BYTES,
    File,
    Range,
    address,
    file_system,
    find_files,
    is_folder,
    is_local,
    sample,
    split_into_shards,
)
from lit_lm.data.ids import ID_SUFFIXES, IdRange, id_ranges, part_of_ids
from lit_lm.data.readers import SUFFIXES, BadDocuments, TextPart, TextShard, in_parts, read, text_in
from lit_lm.files import digest

Split = Literal["train", "validation"]
BUNDLED = {"stories": "en", "stories-zh": "zh"}
"""Language of each bundled source."""
ALIASES = {"tinystories": "hub:roneneldan/TinyStories"}
"""Short names of other sources."""
TOKENS_FILE = re.compile(r"(^|/)tokens-\d+\.bin$")
STORIES_BYTES: dict[Split, int] = {"train": 3_000_000, "validation": 150_000}
HELD_OUT_BYTES = 2**12
"""Minimum size of what is held out from the first shard alone when streaming."""
FOLDER_SUFFIXES = tuple(suffix for suffix in (*SUFFIXES, *ID_SUFFIXES) if suffix != ".json")
"""Types of the files that are read from a folder; .json is as often a description of the data."""


@dataclass(frozen=True)
class TextSource:
    """Documents, in shards."""

    shards: Sequence[TextShard]
    fingerprint: str
    """Changes with the names, sizes and times of the files, and with the options that select the documents."""
    content: str = ""
    """Digest of samples of the files; with `fingerprint`, it changes whenever the documents may have changed."""
    sizes: Sequence[int] = ()
    """Bytes of each shard in its file, if known."""

    def texts(self, bad: BadDocuments) -> Iterator[str]:
        """Text of all documents in order; a long document may be in several parts."""
        return (text for shard in self.shards for text, _ in shard(bad))


@dataclass(frozen=True)
class IdSource:
    """Token ids that include END_OF_TEXT, in shards."""

    shards: Sequence[IdRange]
    fingerprint: str
    content: str = ""
    """As in TextSource."""


@dataclass(frozen=True)
class StoreSource:
    """A finished token store."""

    address: str


Source = TextSource | IdSource | StoreSource


def open_sources(
    source: str | Mapping[str, Any],
    val_source: str | None,
    *,
    val_fraction: float,
    text_field: str,
    bin_dtype: str,
    training: bool = True,
    streaming: bool = False,
) -> dict[Split, Source]:
    """Open the training and the validation source. Checks that files exist, but reads no documents.

    Args:
        source: Training source, as in the module's docstring; a class as a mapping with class_path and init_args.
        val_source: Validation source; None: the source's own validation split, or a fraction held out from it.
        val_fraction: Fraction to hold out: of the documents of each shard, or from the end of a single document or of
            token ids.
        text_field: Name of the text field in .jsonl, .parquet and hub datasets.
        bin_dtype: Data type of the ids in .bin files without a header: uint16, uint32 or int32.
        training: Whether to open the training source too.
        streaming: Whether the source is too large to read completely; documents are held out from its first shard only,
            or whole shards from its beginning if there are many small ones.

    Raises:
        FileNotFoundError: if no file matches a path or glob.
        ValueError: if a file type or a protocol is unknown.
        ConnectionError: if the hub cannot be reached or does not have the dataset.
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
        "train": _split(train, "train", val_fraction, streaming),
        "validation": _split(train, "validation", val_fraction, streaming),
    }


def absolute(source: str, folder: Path = Path()) -> str:
    """Make a path in a source absolute; a relative one is relative to `folder`."""
    if not source or source in (*BUNDLED, *ALIASES):
        return source
    if source.startswith("hub:"):
        name, config = _hub_name(source, folder)
        local = folder / os.path.expanduser(name)
        return f"hub:{local.absolute()}{config and ':'}{config}" if local.is_dir() else source
    return address(source, folder)


def is_remote(source: str) -> bool:
    """Whether a source is, or may be, read over a network."""
    if source.startswith("hub:"):
        return not os.path.isdir(os.path.expanduser(_hub_name(source)[0]))
    return "://" in source or "::" in source


def _hub_name(source: str, folder: Path = Path()) -> tuple[str, str]:
    """Name or folder of a dataset, and of its configuration: the parts of hub:NAME:CONFIG."""
    whole = source.removeprefix("hub:")
    name, _, config = whole.rpartition(":")
    return (name, config) if name and not (folder / os.path.expanduser(whole)).is_dir() else (whole, "")


def _open(
    source: str | Mapping[str, Any], *, text_field: str, bin_dtype: str, streaming: bool
) -> tuple[Source, Source | None]:
    """The source and its validation split; None if it has none."""
    if isinstance(source, Mapping):
        return _own(source["class_path"], source.get("init_args") or {}), None
    if language := BUNDLED.get(source):
        return _bundled("train", language), _bundled("validation", language)
    source = ALIASES.get(source, source)
    if source.startswith("hub:"):
        from lit_lm.data.hub import open_data_set  # takes a second to import

        name, config = _hub_name(source)
        name = os.path.expanduser(name)
        content = sample(find_files(name)) if os.path.isdir(name) else ""
        opened = open_data_set(name, config, text_field).items()
        splits = {split: TextSource(*shards, content) for split, shards in opened}
        return splits["train"], splits.get("validation")
    if (stores := _prepared(source)) is not None:
        return stores
    return _files(source, text_field, bin_dtype, streaming), None


def _own(class_path: str, arguments: Mapping[str, Any]) -> TextSource:
    """A source from a user's class. Its attribute `fingerprint`, if present, must change when its documents do.

    Raises:
        ValueError: if the class cannot be imported or instantiated, or its instances are not iterable.
    """
    module, _, name = str(class_path).rpartition(".")
    try:
        kind = getattr(import_module(module), name)
        if not (isinstance(kind, type) and issubclass(kind, Iterable)):
            raise ValueError("it is not an iterable class; add a method __iter__")
        documents = kind(**arguments)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(f"the source {class_path} cannot be created: {error}") from None

    def shard(bad: BadDocuments) -> Iterator[TextPart]:
        for number, text in enumerate(documents, start=1):
            try:
                yield from in_parts(text_in({"text": text}, "text"))
            except ValueError as error:
                bad.add(lambda number=number: f"{class_path}, document {number}", str(error))  # type: ignore[misc]

    own = getattr(documents, "fingerprint", "")
    if not isinstance(own, str):
        raise ValueError(f"the fingerprint of {class_path} is {own!r}; it must be a string")
    return TextSource([shard], digest("class", class_path, json.dumps(arguments, sort_keys=True, default=repr), own))


def _bundled(split: Split, language: str) -> TextSource:
    num_bytes = STORIES_BYTES[split]
    written_in = [resources.files("lit_lm.data").joinpath(name) for name in ("stories.py", f"stories_{language}.yaml")]
    version = [hashlib.sha256(file.read_bytes()).hexdigest() for file in written_in]

    def documents(bad: BadDocuments) -> Iterator[TextPart]:
        return ((story, True) for story in stories.stories(split, num_bytes, language=language))

    return TextSource([documents], digest(*version, split, str(num_bytes)))


def _prepared(place: str) -> tuple[StoreSource, StoreSource] | None:
    """The train and validation stores in a folder written by `lit-lm prepare --output`; None for other places."""
    if place.endswith((*SUFFIXES, *ID_SUFFIXES)):
        return None
    fs, path = file_system(place)
    if any(letter in place for letter in "*?[") and not (is_local(fs) and os.path.isdir(path)):
        return None
    if not fs.exists(f"{path}/train/meta.json"):
        return None
    return StoreSource(f"{address(place)}/train"), StoreSource(f"{address(place)}/validation")


def _files(pattern: str, text_field: str, bin_dtype: str, streaming: bool) -> Source:
    files = _found(pattern)
    if not files:
        known = f"a path, a URL or a glob, {', '.join((*BUNDLED, *ALIASES))}, or hub:NAME"
        unreachable = ", or its server cannot be reached" if "://" in pattern else ""
        raise FileNotFoundError(f"there is no file {pattern}{unreachable}; data.source can be {known}")
    stats = json.dumps([(file.name, file.size, file.version) for file in files])
    suffixes = {file.suffix for file in files}
    if suffixes <= set(SUFFIXES):
        # SHARD_BYTES and streaming determine the shards
        fingerprint = digest("text", stats, text_field, str(SHARD_BYTES), str(streaming))
        shards = _text_ranges(files, streaming)
        sizes = [sum(part.stop - part.start for part in ranges) for ranges in shards]
        return TextSource(
            [partial(_read_shard, ranges, text_field) for ranges in shards], fingerprint, sample(files), sizes
        )
    if suffixes <= set(ID_SUFFIXES):
        return IdSource(id_ranges(files, bin_dtype), digest("ids", stats, bin_dtype), sample(files))
    allowed = f"text ({', '.join(SUFFIXES)}) or token ids ({', '.join(ID_SUFFIXES)})"
    found = ", ".join(sorted(suffix or "(no suffix)" for suffix in suffixes))
    both = ", not both" if suffixes <= {*SUFFIXES, *ID_SUFFIXES} else ""
    raise ValueError(f"{pattern} has files of type {found}; a source must be {allowed}{both}")


def _found(pattern: str) -> list[File]:
    """The files of a source."""
    if not pattern:
        return []
    files = find_files(pattern)
    if not is_folder(*file_system(pattern)):
        return files
    if any(TOKENS_FILE.search(file.path) for file in files):
        raise ValueError(
            f"{pattern} contains token stores, but no train/meta.json, so it is not a finished output of lit-lm "
            "prepare; pass the folder above it, or run lit-lm prepare --output again"
        )
    known = [file for file in files if file.suffix in FOLDER_SUFFIXES]
    if files and not known:
        raise ValueError(
            f"the folder {pattern} has no files of type {', '.join(FOLDER_SUFFIXES)}; pass others as '{pattern}/*.json'"
        )
    return known


def _text_ranges(files: Sequence[File], streaming: bool) -> list[list[Range]]:
    if streaming:  # reads several shards in parallel, and so needs many
        return [ranges for file in files for ranges in split_into_shards([file])]
    return split_into_shards(files)


def _read_shard(ranges: Sequence[Range], text_field: str, bad: BadDocuments) -> Iterator[TextPart]:
    return chain.from_iterable(read(part, text_field, bad) for part in ranges)


def _split(source: Source, split: Split, fraction: float, streaming: bool) -> Source:
    assert not isinstance(source, StoreSource)
    train = split == "train"
    if isinstance(source, IdSource):
        fingerprint = digest(source.fingerprint, split, str(fraction))
        return replace(source, shards=part_of_ids(source.shards, fraction, train=train), fingerprint=fingerprint)
    how = [source.fingerprint, split, str(fraction), str(streaming)]
    if streaming and (whole := _whole_shards(source.sizes, fraction)):
        chosen = [shard for number, shard in enumerate(source.shards) if (number in whole) != train]
        return replace(source, shards=chosen, fingerprint=digest(*how, "whole shards"), sizes=())
    shards: list[TextShard] = [partial(_split_documents, shard, split, fraction) for shard in source.shards]
    if streaming:
        shards = [shards[0], *source.shards[1:]] if train else shards[:1]
    return replace(source, shards=shards, fingerprint=digest(*how), sizes=())


def _whole_shards(sizes: Sequence[int], fraction: float) -> set[int]:
    """The shards to hold out as a whole when streaming: every k-th (k = round(1 / fraction)) of those with the first
    SHARD_BYTES. Empty if the first shard is large enough, or there are fewer than k.
    """
    if not sizes or sizes[0] * fraction >= HELD_OUT_BYTES:
        return set()
    k = max(2, round(1 / fraction))
    return set(range(k - 1, bisect_right(list(accumulate(sizes)), SHARD_BYTES), k))


def _split_documents(shard: TextShard, split: Split, fraction: float, bad: BadDocuments) -> Iterator[TextPart]:
    """Hold out every k-th document (k = round(1 / fraction)), the last of fewer than k, or the end of a single one."""
    k = max(2, round(1 / fraction))
    if split == "validation":
        bad = BadDocuments(skip=bad.skip)  # the training split counts them
    first = list(islice((ends for _, ends in shard(BadDocuments(skip=bad.skip)) if ends), k))
    if len(first) == 1:
        yield from _split_single(shard, split, fraction, bad)
        return
    number = 1
    for text, ends in shard(bad):
        held_out = number % k == 0 if len(first) == k else number == len(first)
        if held_out == (split == "validation"):
            yield text, ends
        if ends:
            number += 1


def _split_single(shard: TextShard, split: Split, fraction: float, bad: BadDocuments) -> Iterator[TextPart]:
    """The beginning of a single document for training, or its end for validation."""
    left = int(sum(len(text) for text, _ in shard(BadDocuments(skip=bad.skip))) * (1 - fraction))
    for text, ends in shard(bad):
        head, rest = text[:left], text[left:]
        if split == "train" and head:
            yield head, ends or len(head) == left
        if split == "validation" and (rest or ends):
            yield rest, ends
        left -= len(head)
