"""Where documents come from: the bundled stories, the Hugging Face hub, files, token stores, your own code.

A source is named by one word, path or address (`--data.source`):

    stories             the bundled story grammar; no file, no network
    stories-zh          the same in Chinese
    tinystories         the hub's roneneldan/TinyStories
    hub:NAME            any data set of the hub, or a folder laid out like one
    a path or a glob    .txt (documents separated by <|endoftext|>, else the whole file) and .jsonl, each also as .gz
                        or .zst; .parquet; .npy and .bin of token ids; a folder that `lit-lm prepare --output` wrote
    an address          the same at s3://, gs://, https:// or whatever else fsspec knows
    class_path          a class of your own whose instances can be iterated over, and give documents each time

A source without a validation split has a fraction held out from it. Nothing ever falls back to other data.

A source is read in shards, each of which gives its documents without the others: so several processes can prepare it,
and one that was killed can resume.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module, resources
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from lit_lm.data import stories
from lit_lm.data.filesystem import SHARD_BYTES, File, Range, address, file_system, find_files, split_into_shards
from lit_lm.data.ids import ID_SUFFIXES, IdRange, id_ranges, part_of_ids
from lit_lm.data.readers import SUFFIXES, BadDocuments, TextPart, in_parts, read, text_in

Split = Literal["train", "validation"]
BUNDLED = {"stories": "en", "stories-zh": "zh"}
"""The bundled stories, and the language of each."""
ALIASES = {"tinystories": "hub:roneneldan/TinyStories"}
"""Short names of other sources."""
STORIES_BYTES: dict[Split, int] = {"train": 3_000_000, "validation": 150_000}

TextShard = Callable[[BadDocuments], Iterator[TextPart]]
"""Yields its documents; can be iterated again; reports those that cannot be read."""


@dataclass(frozen=True)
class TextSource:
    """Documents."""

    shards: Sequence[TextShard]
    fingerprint: str
    """Changes whenever the documents may have changed."""

    def texts(self, bad: BadDocuments) -> Iterator[str]:
        """The text of all documents in order; a long one may come in several parts."""
        return (text for shard in self.shards for text, _ in shard(bad))


@dataclass(frozen=True)
class IdSource:
    """Token ids, END_OF_TEXT already among them."""

    shards: Sequence[IdRange]
    fingerprint: str
    """Changes whenever the ids may have changed."""


@dataclass(frozen=True)
class StoreSource:
    """A token store that is finished already."""

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
    """The training and the validation source. No document is read yet, but what is missing is noticed here.

    Args:
        source: Where the training documents come from, as in the module's docstring; a class as its class_path and
            init_args.
        val_source: The same for validation; None: the source's own validation split, or else `val_fraction` of it.
        val_fraction: Fraction held out where there is no validation split: of the documents of each shard; of the end
            of a single one; of the end of token ids.
        text_field: Name of the text in .jsonl, .parquet and hub data sets.
        bin_dtype: Type of the ids in .bin files, uint16 or int32.
        training: Whether the training source is wanted too.
        streaming: Whether the source is too large to be read through for what is held out; that then comes from its
            first shard.

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
        "train": _split(train, "train", val_fraction, streaming),
        "validation": _split(train, "validation", val_fraction, streaming),
    }


def absolute(source: str, folder: Path = Path()) -> str:
    """The source with a relative path made absolute, so that it means the same from any working directory.

    Args:
        source: A source, as in the module's docstring.
        folder: What a relative path is relative to.
    """
    if source in (*BUNDLED, *ALIASES):
        return source
    if source.startswith("hub:"):
        local = folder / Path(source.removeprefix("hub:")).expanduser()
        return f"hub:{local.absolute()}" if local.is_dir() else source
    return address(source, folder)


def is_remote(source: str) -> bool:
    """Whether a source is read over a network, or from an address that may be anywhere."""
    if source.startswith("hub:"):
        return not Path(source.removeprefix("hub:")).expanduser().is_dir()
    return "://" in source or "::" in source


def _open(
    source: str | Mapping[str, Any], *, text_field: str, bin_dtype: str, streaming: bool
) -> tuple[Source, Source | None]:
    """A source and its own validation split, if it has one."""
    if isinstance(source, Mapping):
        return _own(source["class_path"], source.get("init_args") or {}), None
    if language := BUNDLED.get(source):
        return _bundled("train", language), _bundled("validation", language)
    source = ALIASES.get(source, source)
    if source.startswith("hub:"):
        from lit_lm.data.hub import open_data_set  # takes a second to import, and only this source needs it

        return open_data_set(source.removeprefix("hub:"), text_field)
    if (stores := _prepared(source)) is not None:
        return stores
    return _files(source, text_field, bin_dtype, streaming), None


def _own(class_path: str, arguments: Mapping[str, Any]) -> TextSource:
    """A class of the user's. Its `fingerprint`, if it has one, must change when its documents do.

    Raises:
        ValueError: if it cannot be imported, or its instances cannot be iterated over.
    """
    module, _, name = class_path.rpartition(".")
    try:
        documents = getattr(import_module(module), name)(**arguments)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(f"the source {class_path} cannot be made: {error}") from None
    if not isinstance(documents, Iterable):
        raise ValueError(f"the source {class_path} cannot be iterated over; it needs a method __iter__")

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
        known = f"a path, an address or a glob, {', '.join((*BUNDLED, *ALIASES))}, or hub:NAME"
        raise FileNotFoundError(f"there is no file {pattern}; data.source can be {known}")
    stats = json.dumps([(file.name, file.size, file.version) for file in files])
    suffixes = {file.suffix for file in files}
    if suffixes <= set(SUFFIXES):
        fingerprint = digest("text", stats, text_field, str(SHARD_BYTES), str(streaming))  # the shards too
        return TextSource(_text_shards(files, text_field, streaming), fingerprint)
    if suffixes <= set(ID_SUFFIXES):
        return IdSource(id_ranges(files, bin_dtype), digest("ids", stats, bin_dtype))
    allowed = f"text ({', '.join(SUFFIXES)}) or token ids ({', '.join(ID_SUFFIXES)})"
    found = ", ".join(sorted(suffix or "(no suffix)" for suffix in suffixes))
    both = ", not both" if suffixes <= {*SUFFIXES, *ID_SUFFIXES} else ""
    raise ValueError(f"{pattern} has files of kind {found}; a source is of {allowed}{both}")


def _text_shards(files: Sequence[File], text_field: str, streaming: bool) -> list[TextShard]:
    def shard(ranges: Sequence[Range], bad: BadDocuments) -> Iterator[TextPart]:
        return chain.from_iterable(read(part, text_field, bad) for part in ranges)

    if streaming:  # which reads several shards at once, and so needs many
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
    """Every k-th document is held out (k = 1 / fraction), the last of fewer than k, or the end of a single one."""
    k = max(2, round(1 / fraction))
    if split == "validation":
        bad = BadDocuments(skip=bad.skip)  # training has counted them
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
    """The beginning of a single document, for training, or its end."""
    left = int(sum(len(text) for text, _ in shard(BadDocuments(skip=bad.skip))) * (1 - fraction))
    for text, ends in shard(bad):
        head, rest = text[:left], text[left:]
        if split == "train" and head:
            yield head, ends or len(head) == left
        if split == "validation" and (rest or ends):
            yield rest, ends
        left -= len(head)


def digest(*parts: str) -> str:
    """SHA-256 of some texts, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
