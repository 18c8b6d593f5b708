"""The corpus of a run: its sources, its tokenizer, and a token store for each source and split.

Tokenizers and stores are cached under names derived from everything that determines their content, so a corpus is
prepared only once.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from lit_lm.data.filesystem import file_system, is_local
from lit_lm.data.find_tokenizer import load_tokenizer
from lit_lm.data.ids import Ids
from lit_lm.data.readers import BadDocument, BadDocuments, TextPart
from lit_lm.data.sources import IdSource, Source, Split, StoreSource, TextSource, open_sources
from lit_lm.data.store_meta import FORMAT, read_description
from lit_lm.data.token_store import StoreWriter, TokenStore, check_ids, check_once, fetch_store
from lit_lm.data.tokenize import Chunk, tokenize
from lit_lm.files import digest, write_text
from lit_lm.tokenizer.tokenizer import Tokenizer
from lit_lm.tokenizer.train import TokenizerType

TOKENIZER_BYTES = 100_000_000
"""Bytes at the beginning of a streamed source on which its tokenizer is trained."""
SAMPLE_BYTES = 1_000_000_000
"""About the maximum of bytes of other sources on which a tokenizer is trained."""
SAMPLED_SHARDS = 100
"""Number of shards that share SAMPLE_BYTES: there may be very many, and texts are read in parts of up to 4 MB."""

Part = tuple[int, int]
"""Part i of n (from 1) of a preparation shared by several jobs."""


class Corpus:
    """Sources, and the tokenizer and token stores made from them."""

    def __init__(
        self,
        source: Mapping[str, Any] | str,
        val_source: str | None,
        *,
        val_fraction: float,
        text_field: str,
        bin_dtype: str,
        tokenizer: str | None,
        tokenizer_type: TokenizerType,
        special_tokens: Sequence[str] = (),
        vocab_size: int,
        cache_dir: Path,
        streaming: bool = False,
    ) -> None:
        """
        Args:
            source: A source, as in `open_sources`, or a mapping from sources to weights.
            val_source: Source of the validation data; None: the sources' own validation splits or held-out parts.
            val_fraction, text_field, bin_dtype: As in `open_sources`.
            tokenizer: A tokenizer, as in `load_tokenizer`; None: the prepared source's tokenizer, or else train one on
                the sources.
            tokenizer_type: Type of tokenizer to train.
            special_tokens: Special tokens of the tokenizer to train.
            vocab_size: Number of tokens to train; maximum for any tokenizer.
            cache_dir: Folder of tokenizers and stores.
            streaming: Read only as much training text as needed: validation documents are held out from the first
                shard, and a tokenizer is trained on the first TOKENIZER_BYTES.
        """
        own = {str(source["class_path"]): source} if isinstance(source, Mapping) and "class_path" in source else {}
        weights = {source: 1.0} if isinstance(source, str) else dict.fromkeys(own, 1.0) or source
        self.names = list(weights)
        self._own: Mapping[str, Any] = own
        """Sources given as a class, by class_path."""
        total = sum(weights.values())
        self.weights = tuple(weight / total for weight in weights.values())
        self.val_source, self.val_fraction = val_source, val_fraction
        self.text_field, self.bin_dtype = text_field, bin_dtype
        self.given_tokenizer, self.tokenizer_type, self.special_tokens = tokenizer, tokenizer_type, special_tokens
        self.vocab_size, self.cache_dir = vocab_size, cache_dir
        self.streaming = streaming
        self.skip_bad = False
        """Whether documents that cannot be read are skipped and counted."""

    @property
    def splits(self) -> dict[Split, list[str]]:
        """Names of the sources of each split."""
        return {"train": self.names, "validation": self.names if self.val_source is None else [self.val_source]}

    def label(self, name: str) -> str:
        """Short name of a source: the file name without folder and suffix, unless another source has the same."""

        def short(name: str) -> str:
            return Path(name).name.partition(".")[0] if "/" in name else name

        return name if [short(other) for other in self.names].count(short(name)) > 1 else short(name)

    @cached_property
    def sources(self) -> dict[Split, dict[str, Source]]:
        """The opened sources of both splits.

        Raises:
            ValueError, OSError: as in `open_sources`.
        """
        return self._opened(training=True)

    @cached_property
    def validation_sources(self) -> dict[str, Source]:
        """The opened validation sources. With a `val_source`, the training text may be missing."""
        if self.val_source is None:
            return self.sources["validation"]
        return self._opened(training=False)["validation"]

    def _opened(self, *, training: bool) -> dict[Split, dict[str, Source]]:
        opened: dict[Split, dict[str, Source]] = {"train": {}, "validation": {}}
        for name in self.names if training else self.names[:1]:
            pair = open_sources(
                self._own.get(name, name),
                self.val_source,
                training=training,
                val_fraction=self.val_fraction,
                text_field=self.text_field,
                bin_dtype=self.bin_dtype,
                streaming=self.streaming,
            )
            for split, source in pair.items():
                opened[split][name if split == "train" or self.val_source is None else self.val_source] = source
        return opened

    def tokenizer(self) -> Tokenizer:
        """The tokenizer: the given one, the prepared source's, or one trained on the training documents.

        Raises:
            ValueError: if it cannot be read or trained, or has more tokens than `vocab_size`.
        """
        tokenizer = self._tokenizer()
        if tokenizer.vocab_size > self.vocab_size:
            size = tokenizer.vocab_size
            raise ValueError(
                f"the tokenizer has {size} tokens but vocab_size is {self.vocab_size}; "
                f"set model.net.vocab_size to at least {size}"
            )
        return tokenizer

    def _tokenizer(self) -> Tokenizer:
        if self.given_tokenizer is not None:
            return load_tokenizer(self.given_tokenizer)
        sources = self.sources["train"]
        for name, source in (sources | self.sources["validation"]).items():
            if isinstance(source, IdSource):
                raise ValueError(f"{name} contains token ids; pass their tokenizer with --data.tokenizer")
        for source in sources.values():
            if isinstance(source, StoreSource):
                return Tokenizer.from_json(read_description(source.address, "tokenizer.json"))
        texts = [source for source in sources.values() if isinstance(source, TextSource)]
        fingerprint = digest(
            "tokenizer",
            *(mark for source in texts for mark in (source.fingerprint, source.content)),
            str(self.vocab_size),
            self.tokenizer_type,
            str(self.streaming),
            str(SAMPLE_BYTES),
            *self.special_tokens,
        )[:32]
        path = self.cache_dir / "tokenizers" / f"{fingerprint}.json"
        if path.exists():  # the cache may be read-only
            return Tokenizer.load(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                bar = tqdm(
                    self._training_texts(texts), "training the tokenizer", unit=" documents", unit_scale=True, **_BAR
                )
                try:
                    text = Tokenizer.train(bar, self.vocab_size, self.tokenizer_type, self.special_tokens).to_json()
                except BadDocument as error:
                    raise ValueError(f"{error}\n{self._remedy}") from None
                write_text(path, text)
        return Tokenizer.load(path)

    def _training_texts(self, sources: Sequence[TextSource]) -> Iterator[str]:
        """The texts on which a tokenizer is trained."""
        bad = BadDocuments(skip=self.skip_bad)
        if self.streaming:
            return _first_bytes(chain.from_iterable(source.texts(bad) for source in sources), TOKENIZER_BYTES)
        return _sampled([partial(shard, bad) for source in sources for shard in source.shards], SAMPLE_BYTES)

    @property
    def _remedy(self) -> str:
        """How to proceed after a bad document."""
        if self.streaming:
            return "streaming cannot skip documents: correct the file"
        return "`lit-lm prepare --on_bad_document skip` skips such documents"

    def store(self, split: Split, name: str, tokenizer: Tokenizer) -> TokenStore:
        """The store of a source and split, written first if it is missing.

        Raises:
            ValueError, OSError: if the source cannot be read, has no text, or has ids outside the vocabulary.
        """
        source = self.validation_sources[name] if split == "validation" else self.sources[split][name]
        try:
            if isinstance(source, StoreSource):
                store = self._finished_store(source, tokenizer)
            else:
                writer = self.writer(source, tokenizer)
                if (writer.path / "meta.json").exists():
                    store = TokenStore(writer.path)
                else:
                    self.write(split, source, writer)
                    store = writer.finish()
            if not store.meta.characters:  # nothing but END_OF_TEXT
                raise ValueError("the source has no text")
            return store
        except ValueError as error:
            raise ValueError(f"data.source {name} ({split}): {error}") from None

    def writer(self, source: TextSource | IdSource, tokenizer: Tokenizer) -> StoreWriter:
        """The writer of a source's store in the cache."""
        name = digest("store", FORMAT, source.fingerprint, source.content, tokenizer.fingerprint)[:32]
        return StoreWriter(self.cache_dir / "stores" / name, source.fingerprint, tokenizer, len(source.shards))

    def write(self, split: Split, source: TextSource | IdSource, writer: StoreWriter, part: Part = (1, 1)) -> None:
        """Write the missing shards of a part."""
        index, count = part
        numbers = range(writer.num_shards * (index - 1) // count, writer.num_shards * index // count)
        missing = [number for number in numbers if writer.shard(number) is None]
        with tqdm(
            total=len(numbers),
            initial=len(numbers) - len(missing),
            desc=f"preparing {split} data",
            unit=" shards",
            **_BAR,
        ) as bar:
            for number in missing:
                self._write_shard(source, writer, number, bar)
                bar.update()

    def _write_shard(self, source: TextSource | IdSource, writer: StoreWriter, number: int, bar: tqdm) -> None:
        bad = BadDocuments(skip=self.skip_bad)
        if isinstance(source, TextSource):
            chunks = tokenize(source.shards[number](bad), writer.tokenizer)
        else:
            chunks = _id_chunks(source.shards[number].blocks(), writer.tokenizer)
        try:
            writer.write(number, _shown(chunks, bar), lambda: bad.count)
        except BadDocument as error:
            raise ValueError(f"{error}\n{self._remedy}") from None
        if bad.count:
            tqdm.write(f"skipped {bad.count} bad documents; first: {bad.first}")

    def _finished_store(self, source: StoreSource, tokenizer: Tokenizer) -> TokenStore:
        fs, path = file_system(source.address)
        store = TokenStore(Path(path)) if is_local(fs) else fetch_store(source.address, self.cache_dir / "stores")
        if store.meta.shards[0].tokenizer != tokenizer.fingerprint:
            raise ValueError(
                "it was prepared with another tokenizer; prepare all sources with the same one, "
                f"for example --data.tokenizer {source.address}/tokenizer.json"
            )
        check_once(store, tokenizer, self.cache_dir / "checked")
        return store


def _shown(chunks: Iterable[Chunk], bar: tqdm) -> Iterator[Chunk]:
    """Yield the chunks and show the speed on the bar."""
    start, num_bytes, documents = time.perf_counter(), 0, 0
    for chunk in chunks:
        yield chunk
        num_bytes, documents = num_bytes + chunk.bytes, documents + chunk.documents
        elapsed = time.perf_counter() - start
        bar.set_postfix_str(f"{num_bytes / elapsed / 1e6:.1f} MB/s, {documents / elapsed:,.0f} documents/s")


def _first_bytes(documents: Iterable[str], num_bytes: int) -> Iterator[str]:
    """Yield documents until they have at least `num_bytes` bytes of UTF-8."""
    for document in documents:
        if num_bytes <= 0:
            return
        num_bytes -= len(document.encode())
        yield document


def _sampled(shards: Sequence[Callable[[], Iterator[TextPart]]], num_bytes: int) -> Iterator[str]:
    """Yield all texts or, of more than `num_bytes` of UTF-8, the beginnings of up to SAMPLED_SHARDS shards, spread
    evenly, each with its share of the bytes. What shorter shards leave is shared out again.
    """
    unread, left = dict.fromkeys(range(len(shards)), 0), num_bytes  # shard -> number of texts that were read
    while unread:
        chosen = list(unread)[:: math.ceil(len(unread) / SAMPLED_SHARDS)]
        if (share := left // len(chosen)) <= 0:
            break
        for shard in chosen:
            until = left - share
            for text, _ in islice(shards[shard](), unread[shard], None):
                yield text
                unread[shard] += 1
                left -= len(text.encode())
                if left <= until:
                    break
            else:
                del unread[shard]
    if unread:
        tqdm.write(f"the tokenizer is trained on {num_bytes - left:,} bytes, spread over {len(shards):,} shards")


def _id_chunks(blocks: Iterable[Ids], tokenizer: Tokenizer) -> Iterator[Chunk]:
    for block in blocks:
        check_ids(block, tokenizer)
        text = tokenizer.decode(block.tolist())
        documents = int((block == tokenizer.end_id).sum())
        end = len(tokenizer.decode([tokenizer.end_id]))
        characters = len(text) - documents * end
        yield Chunk(block, documents, len(text.encode()) - documents * end, characters)


_BAR: dict[str, Any] = {"leave": False, "disable": None}
"""Show a progress bar only in a terminal."""
