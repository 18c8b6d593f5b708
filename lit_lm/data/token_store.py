"""Token stores: token ids on disk, written once in shards, read by memory map.

A store is a folder. Shard n of the source is in `tokens-<n>.bin` (consecutive ids, little-endian uint16, or uint32 if
the vocabulary needs it; END_OF_TEXT after each document), described by `tokens-<n>.json`. A file appears under its name
only when complete: the description of a shard after its tokens, and `meta.json`, which makes the folder a store, after
all shards. So several processes can write different shards, and an interrupted preparation resumes at the shard that
it was writing.
"""

import hashlib
import json
import math
import os
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import IO

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from lit_lm.data.filesystem import file_system
from lit_lm.data.ids import Ids, StoredIds, id_dtype
from lit_lm.data.store_meta import ShardMeta, StoreMeta, check_inside, read_description
from lit_lm.data.tokenize import Chunk
from lit_lm.files import digest, sha256, write_text, write_whole
from lit_lm.tokenizer.tokenizer import Tokenizer

OPEN_SHARDS = 256
"""Maximum number of open memory maps, each of which needs a file handle."""
CHECKED_SHARDS = 1_000
"""Number of shards whose sizes are checked when a store is opened. A store of 5 TB has 70,000."""


class TokenStore:
    """A finished store, open for reading."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.meta = StoreMeta.from_json(read_description(str(path), "meta.json"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        self._check_files()
        self._starts = [0, *accumulate(shard.tokens for shard in self.meta.shards)]
        self._shard = lru_cache(OPEN_SHARDS)(self._open_shard)

    def __len__(self) -> int:
        return self._starts[-1]

    def __reduce__(self) -> tuple[type["TokenStore"], tuple[Path]]:
        return TokenStore, (self.path,)  # a worker opens the files itself

    def read(self, start: int, stop: int) -> Ids:
        """Ids `start` to `stop` - 1."""
        ids = np.empty(max(0, min(stop, len(self)) - start), np.int64)
        filled = 0
        while filled < len(ids):
            number = bisect_right(self._starts, start + filled) - 1
            first = start + filled - self._starts[number]
            part = self._shard(number)[first : first + len(ids) - filled]
            ids[filled : filled + len(part)] = part
            filled += len(part)
        return ids

    def blocks(self, size: int = 2**20) -> Iterator[Ids]:
        """All ids in order, in blocks of at most `size`."""
        for start in range(0, len(self), size):
            yield self.read(start, min(start + size, len(self)))

    def damaged(self) -> list[int]:
        """Numbers of the shards whose tokens do not match their digest. Reads the whole store."""
        return [
            number
            for number, meta in enumerate(self.meta.shards)
            if sha256(tokens_file(self.path, number)) != meta.sha256
        ]

    def _check_files(self) -> None:
        """Check that all shards are files of this folder, and the sizes of up to CHECKED_SHARDS, spread evenly.

        Raises:
            ValueError: if one is missing, a link out of the folder, or has another size.
        """
        num_shards = len(self.meta.shards)
        with os.scandir(self.path) as entries:
            files = {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
        for number in range(num_shards):
            if _tokens_name(number) not in files:
                check_inside(self.path, tokens_file(self.path, number))  # it may be a link
                self._check_size(number)
        for number in range(0, num_shards, math.ceil(num_shards / CHECKED_SHARDS)):
            self._check_size(number)

    def _check_size(self, number: int) -> None:
        file, size = (
            tokens_file(self.path, number),
            self.meta.shards[number].tokens * np.dtype(self.meta.dtype).itemsize,
        )
        if not file.is_file() or file.stat().st_size != size:
            raise ValueError(f"{file} is missing or damaged; prepare or fetch it again")

    def _open_shard(self, number: int) -> StoredIds:
        self._check_size(number)
        tokens = self.meta.shards[number].tokens
        if not tokens:  # an empty file cannot be mapped
            return np.empty(0, self.meta.dtype)
        return np.memmap(tokens_file(self.path, number), dtype=self.meta.dtype, mode="r", shape=(tokens,))


@dataclass(frozen=True)
class StoreWriter:
    """Writes a store shard by shard. Several processes may write one store; each shard is written once."""

    path: Path
    source: str
    """Fingerprint of the source."""
    tokenizer: Tokenizer
    num_shards: int

    @property
    def dtype(self) -> str:
        return id_dtype(self.tokenizer.vocab_size)

    @cached_property
    def _fingerprint(self) -> str:
        """That of the tokenizer, which takes a millisecond; there may be very many shards."""
        return self.tokenizer.fingerprint

    def shard(self, number: int) -> ShardMeta | None:
        """Description of a shard; None if it is missing, damaged, or of another source or tokenizer."""
        tokens, description = tokens_file(self.path, number), _description(self.path, number)
        if not description.is_file() or not tokens.is_file():
            return None
        try:
            meta = ShardMeta(**json.loads(description.read_text(encoding="utf-8")))
        except (ValueError, TypeError, RecursionError):  # damaged
            return None
        whole = tokens.stat().st_size == meta.tokens * np.dtype(self.dtype).itemsize
        ours = (meta.source, meta.tokenizer) == (self.source, self._fingerprint)
        return meta if whole and ours else None

    def missing(self) -> list[int]:
        """Numbers of the shards that have not been written."""
        return [number for number in range(self.num_shards) if self.shard(number) is None]

    def write(self, number: int, chunks: Iterable[Chunk], skipped: Callable[[], int]) -> None:
        """Write a shard if it is missing.

        Args:
            number: Number of the shard.
            chunks: Its tokens.
            skipped: Returns the number of documents that could not be read; called after the last chunk.

        Raises:
            ValueError: if a chunk has an id outside the vocabulary.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with FileLock(tokens_file(self.path, number).with_suffix(".lock")):
            if self.shard(number) is None:
                self._write(number, chunks, skipped)

    def _write(self, number: int, chunks: Iterable[Chunk], skipped: Callable[[], int]) -> None:
        tokens = documents = num_bytes = characters = 0
        content = hashlib.sha256()
        with write_whole(tokens_file(self.path, number)) as file:
            for chunk in chunks:
                check_ids(chunk.ids, self.tokenizer)
                data = chunk.ids.astype(self.dtype, copy=False).tobytes()
                file.write(data)
                content.update(data)
                tokens += len(chunk.ids)
                documents += chunk.documents
                num_bytes += chunk.bytes
                characters += chunk.characters
        sums = (tokens, documents, num_bytes, characters, skipped(), content.hexdigest())
        meta = ShardMeta(*sums, source=self.source, tokenizer=self._fingerprint)
        write_text(_description(self.path, number), json.dumps(asdict(meta), indent=1))

    def finish(self) -> TokenStore:
        """Complete the store and open it.

        Raises:
            ValueError: if a shard is missing, or all are empty.
        """
        shards = [self.shard(number) for number in range(self.num_shards)]
        present = tuple(shard for shard in shards if shard is not None)
        if len(present) < self.num_shards:
            raise ValueError(f"{self.num_shards - len(present)} of {self.num_shards} shards are missing in {self.path}")
        if not any(shard.tokens for shard in present):
            shutil.rmtree(self.path, ignore_errors=True)
            raise ValueError("the source has no text")
        files = {"tokenizer.json": self.tokenizer.to_json(), "meta.json": StoreMeta(self.dtype, present).to_json()}
        paths = {self.path / name: text for name, text in files.items()}
        if not all(path.exists() and path.read_text(encoding="utf-8") == text for path, text in paths.items()):
            with FileLock(self.path / "finish.lock"):
                for path, text in paths.items():
                    write_text(path, text)
        return TokenStore(self.path)


def check_ids(ids: StoredIds, tokenizer: Tokenizer) -> None:
    """Check that ids are in the vocabulary.

    Raises:
        ValueError: if one is not.
    """
    limit = tokenizer.vocab_size
    if len(ids) and not 0 <= ids.min() <= ids.max() < limit:
        worst = ids.min() if ids.min() < 0 else ids.max()
        raise ValueError(f"the data contains token id {worst}; the tokenizer has ids 0 to {limit - 1}")


def check_once(store: TokenStore, tokenizer: Tokenizer, folder: Path) -> None:
    """Check the ids of a store from elsewhere, and note in `folder` that they are valid.

    Raises:
        ValueError: if one is outside the vocabulary, or the description has more documents than the tokens.
    """
    stats = [tokens_file(store.path, number).stat() for number in range(len(store.meta.shards))]
    state = json.dumps([(str(store.path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino) for stat in stats])
    note = folder / digest(store.meta.to_json(), tokenizer.fingerprint, state)[:32]
    if note.exists():
        return
    documents = 0
    for block in tqdm(store.blocks(), f"checking {store.path}", leave=False, disable=None):
        check_ids(block, tokenizer)
        documents += int((block == tokenizer.end_id).sum())
    if documents < store.meta.documents:
        raise ValueError(f"its description has {store.meta.documents} documents, but its tokens have {documents}")
    with suppress(OSError):  # a read-only cache
        folder.mkdir(parents=True, exist_ok=True)
        note.touch()


def find_stores(cache_dir: Path, digests: Sequence[str]) -> list[TokenStore]:
    """The stores in a cache whose tokens have these digests; empty if any is missing."""
    found: dict[str, TokenStore] = {}
    for meta in (cache_dir / "stores").glob("*/meta.json"):
        with suppress(OSError, ValueError):  # damaged, or of another version of lit-lm
            store = TokenStore(meta.parent)
            found[store.meta.sha256] = store
    return [found[digest] for digest in digests] if found.keys() >= set(digests) else []


def fetch_store(place: str, folder: Path) -> TokenStore:
    """Copy the store at a URL into a folder, except for the shards that are already there in their full size.

    Raises:
        ValueError: if the store is invalid, or a shard does not match its digest.
        OSError: if the URL cannot be read.
    """
    try:
        fs, source = file_system(place)
        text = read_description(place, "meta.json")
        meta = StoreMeta.from_json(text)
        path = folder / hashlib.sha256(text.encode()).hexdigest()[:32]
        if (path / "meta.json").exists():  # the cache may be read-only
            with suppress(ValueError):  # a shard is missing or cut
                return TokenStore(path)
        path.mkdir(parents=True, exist_ok=True)
        with FileLock(path / "fetch.lock"):
            for number, shard in enumerate(tqdm(meta.shards, desc=f"fetching {place}", leave=False, disable=None)):
                tokens, size = tokens_file(path, number), shard.tokens * np.dtype(meta.dtype).itemsize
                if not tokens.is_file() or tokens.stat().st_size != size:
                    with write_whole(tokens) as file, fs.open(f"{source}/{tokens.name}", "rb") as remote:
                        if _copy(remote, file, size) != shard.sha256:
                            raise ValueError(f"{place}/{tokens.name} is damaged: it does not match its digest")
            write_text(path / "meta.json", text)
        return TokenStore(path)
    except ValueError:
        raise
    except Exception as error:  # file systems raise different types
        raise OSError(f"{place} cannot be fetched: {error or type(error).__name__}") from None


def _copy(source: IO[bytes], file: IO[bytes], size: int) -> str:
    """Copy to a file and return the digest of the content, or "" if it has more than `size` bytes."""
    content = hashlib.sha256()
    while block := source.read(2**20):
        if (size := size - len(block)) < 0:
            return ""
        file.write(block)
        content.update(block)
    return content.hexdigest()


def tokens_file(path: Path, number: int) -> Path:
    """The file of shard `number` of a store."""
    return path / _tokens_name(number)


def _tokens_name(number: int) -> str:
    return f"tokens-{number:05d}.bin"


def _description(path: Path, number: int) -> Path:
    return path / f"tokens-{number:05d}.json"
