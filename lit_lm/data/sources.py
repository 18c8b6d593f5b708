"""Sources of documents: the bundled stories, the Hugging Face hub, files, token stores, your own classes.

A source is a name, a path, a URL or a class (`--data.source`):

    stories             the bundled story grammar, without files or network
    stories-zh          the same in Chinese
    tinystories         roneneldan/TinyStories from the hub
    hub:NAME            any dataset on the hub, or a local folder with the same layout
    a path or a glob    .txt (documents separated by <|endoftext|>, or one document per file) and .jsonl, both also as
                        .gz or .zst; .parquet; .npy and .bin with token ids; a folder from `lit-lm prepare --output`
    a URL               the same at s3://, gs://, https:// or any other protocol of fsspec
    class_path          your own class, whose instances yield all documents each time they are iterated

If a source has no validation split, a fraction of it is held out. A source is never replaced by other data.

A source is read in independent shards, so several processes can prepare it, and an interrupted preparation can resume.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module, resources
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from lit_lm.data import stories
from lit_lm.data.filesystem import SHARD_BYTES, File, Range, address, file_system, find_files, split_into_shards
from lit_lm.data.ids import ID_SUFFIXES, IdRange, id_ranges, part_of_ids
from lit_lm.data.readers import SUFFIXES, BadDocuments, TextPart, TextShard, in_parts, read, text_in
from lit_lm.files import digest

Split = Literal["train", "validation"]
BUNDLED = {"stories": "en", "stories-zh": "zh"}
"""Language of each bundled source."""
ALIASES = {"tinystories": "hub:roneneldan/TinyStories"}
"""Short names of other sources."""
STORIES_BYTES: dict[Split, int] = {"train": 3_000_000, "validation": 150_000}


@dataclass(frozen=True)
class TextSource:
    """Documents, in shards."""

    shards: Sequence[TextShard]
    fingerprint: str
    """Changes whenever the documents may have changed."""

    def texts(self, bad: BadDocuments) -> Iterator[str]:
        """Text of all documents in order; a long document may be in several parts."""
        return (text for shard in self.shards for text, _ in shard(bad))


@dataclass(frozen=True)
class IdSource:
    """Token ids that include END_OF_TEXT, in shards."""

    shards: Sequence[IdRange]
    fingerprint: str
    """Changes whenever the ids may have changed."""


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
        bin_dtype: Data type of the ids in .bin files: uint16 or int32.
        training: Whether to open the training source too.
        streaming: Whether the source is too large to read completely; documents are held out from its first shard only.

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
    if source in (*BUNDLED, *ALIASES):
        return source
    if source.startswith("hub:"):
        local = folder / Path(source.removeprefix("hub:")).expanduser()
        return f"hub:{local.absolute()}" if local.is_dir() else source
    return address(source, folder)


def is_remote(source: str) -> bool:
    """Whether a source is, or may be, read over a network."""
    if source.startswith("hub:"):
        return not Path(source.removeprefix("hub:")).expanduser().is_dir()
    return "://" in source or "::" in source


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

        name = source.removeprefix("hub:")
        splits = {split: TextSource(*opened) for split, opened in open_data_set(name, text_field).items()}
        return splits["train"], splits.get("validation")
    if (stores := _prepared(source)) is not None:
        return stores
    return _files(source, text_field, bin_dtype, streaming), None


def _own(class_path: str, arguments: Mapping[str, Any]) -> TextSource:
    """A source from a user's class. Its attribute `fingerprint`, if present, must change when its documents do.

    Raises:
        ValueError: if the class cannot be imported or instantiated, or its instances are not iterable.
    """
    module, _, name = class_path.rpartition(".")
    try:
        documents = getattr(import_module(module), name)(**arguments)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(f"the source {class_path} cannot be created: {error}") from None
    if not isinstance(documents, Iterable):
        raise ValueError(f"the source {class_path} is not iterable; add a method __iter__")

    def shard(bad: BadDocuments) -> Iterator[TextPart]:
        for number, text in enumerate(documents, start=1):
            try:
                yield from in_parts(text_in({"text": text}, "text"))
            except ValueError as error:
                bad.add(lambda number=number: f"{class_path}, document {number}", str(error))  # type: ignore[misc]

    own = getattr(documents, "fingerprint", "")
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
    if place.endswith((*SUFFIXES, *ID_SUFFIXES)) or any(letter in place for letter in "*?["):
        return None
    fs, path = file_system(place)
    if not fs.exists(f"{path}/train/meta.json"):
        return None
    return StoreSource(f"{address(place)}/train"), StoreSource(f"{address(place)}/validation")


def _files(pattern: str, text_field: str, bin_dtype: str, streaming: bool) -> Source:
    files = find_files(pattern)
    if not files:
        known = f"a path, a URL or a glob, {', '.join((*BUNDLED, *ALIASES))}, or hub:NAME"
        raise FileNotFoundError(f"there is no file {pattern}; data.source can be {known}")
    stats = json.dumps([(file.name, file.size, file.version) for file in files])
    suffixes = {file.suffix for file in files}
    if suffixes <= set(SUFFIXES):
        # SHARD_BYTES and streaming determine the shards
        fingerprint = digest("text", stats, text_field, str(SHARD_BYTES), str(streaming))
        return TextSource(_text_shards(files, text_field, streaming), fingerprint)
    if suffixes <= set(ID_SUFFIXES):
        return IdSource(id_ranges(files, bin_dtype), digest("ids", stats, bin_dtype))
    allowed = f"text ({', '.join(SUFFIXES)}) or token ids ({', '.join(ID_SUFFIXES)})"
    found = ", ".join(sorted(suffix or "(no suffix)" for suffix in suffixes))
    both = ", not both" if suffixes <= {*SUFFIXES, *ID_SUFFIXES} else ""
    raise ValueError(f"{pattern} has files of type {found}; a source must be {allowed}{both}")


def _text_shards(files: Sequence[File], text_field: str, streaming: bool) -> list[TextShard]:
    def shard(ranges: Sequence[Range], bad: BadDocuments) -> Iterator[TextPart]:
        return chain.from_iterable(read(part, text_field, bad) for part in ranges)

    if streaming:  # reads several shards in parallel, and so needs many
        divided = [ranges for file in files for ranges in split_into_shards([file])]
    else:
        divided = split_into_shards(files)
    return [partial(shard, ranges) for ranges in divided]


def _split(source: Source, split: Split, fraction: float, streaming: bool) -> Source:
    assert not isinstance(source, StoreSource)
    if isinstance(source, IdSource):
        fingerprint = digest(source.fingerprint, split, str(fraction))
        return IdSource(part_of_ids(source.shards, fraction, train=split == "train"), fingerprint)
    shards: list[TextShard] = [partial(_split_documents, shard, split, fraction) for shard in source.shards]
    if streaming:
        shards = [shards[0], *source.shards[1:]] if split == "train" else shards[:1]
    return TextSource(shards, digest(source.fingerprint, split, str(fraction), str(streaming)))


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
