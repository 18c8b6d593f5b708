"""The corpus of a run: its sources, the tokenizer, and a token store for each source and split.

What is made here is kept in a cache under names that follow from everything that went into it, so the same corpus is
prepared once, by whatever command came first.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from lit_lm.data.filesystem import file_system, is_local
from lit_lm.data.ids import Ids
from lit_lm.data.readers import BadDocument, BadDocuments
from lit_lm.data.sources import IdSource, Source, Split, StoreSource, TextSource, digest, open_sources
from lit_lm.data.token_store import FORMAT, StoreWriter, TokenStore, check_ids, fetch_store
from lit_lm.data.tokenize import Chunk, tokenize
from lit_lm.files import write_text
from lit_lm.tokenizer.tokenizer import Tokenizer
from lit_lm.tokenizer.train import TokenizerType

TOKENIZER_BYTES = 100_000_000
"""Size of the beginning of a streamed source on which its tokenizer is trained."""

Part = tuple[int, int]
"""Part i of n (from 1) of a preparation that several jobs share."""


class Corpus:
    """Sources, and the tokenizer and token stores that are made of them."""

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
        vocab_size: int,
        cache_dir: Path,
        streaming: bool = False,
    ) -> None:
        """
        Args:
            source: A source, as `open_sources` takes it, or several with their weights.
            val_source: Source of the validation data; None: the sources' own validation splits or held-out parts.
            val_fraction, text_field, bin_dtype: As for `open_sources`.
            tokenizer: A tokenizer to use; None: the prepared source's own, or one that is trained on the sources.
            tokenizer_type: Type of tokenizer to train.
            vocab_size: Size to train it to, and the most tokens that any may have.
            cache_dir: Where tokenizers and stores are kept.
            streaming: Read no more of the training text than is needed: what is held out comes from the first shard,
                and a tokenizer is trained on the first TOKENIZER_BYTES.
        """
        own = {str(source["class_path"]): source} if isinstance(source, Mapping) and "class_path" in source else {}
        weights = {source: 1.0} if isinstance(source, str) else dict.fromkeys(own, 1.0) or source
        self.names = list(weights)
        self._own: Mapping[str, Any] = own
        """Sources that are classes, by their names."""
        total = sum(weights.values())
        self.weights = tuple(weight / total for weight in weights.values())
        self.val_source, self.val_fraction = val_source, val_fraction
        self.text_field, self.bin_dtype = text_field, bin_dtype
        self.tokenizer_path, self.tokenizer_type = tokenizer, tokenizer_type
        self.vocab_size, self.cache_dir = vocab_size, cache_dir
        self.streaming = streaming
        self.skip_bad = False
        """Whether documents that cannot be read are left out and counted."""

    @property
    def splits(self) -> dict[Split, list[str]]:
        """The sources of each split."""
        return {"train": self.names, "validation": self.names if self.val_source is None else [self.val_source]}

    def label(self, name: str) -> str:
        """A short name for a source: a file's without folder and suffix, unless another source has it too."""

        def short(name: str) -> str:
            return Path(name).name.partition(".")[0] if "/" in name else name

        return name if [short(other) for other in self.names].count(short(name)) > 1 else short(name)

    @cached_property
    def sources(self) -> dict[Split, dict[str, Source]]:
        """The opened sources of both splits.

        Raises:
            ValueError, OSError: as `open_sources` does.
        """
        return self._opened(training=True)

    @cached_property
    def validation_sources(self) -> dict[str, Source]:
        """The opened sources of validation, for which the training text need not be there."""
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
            ValueError: if it cannot be read or has more tokens than the vocabulary, or there is no text to train on.
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
        if self.tokenizer_path is not None:
            return Tokenizer.load(Path(self.tokenizer_path).expanduser())
        sources = self.sources["train"]
        for name, source in (sources | self.sources["validation"]).items():
            if isinstance(source, IdSource):
                raise ValueError(f"{name} holds token ids; give their tokenizer with --data.tokenizer")
        for source in sources.values():
            if isinstance(source, StoreSource):
                fs, folder = file_system(source.address)
                return Tokenizer.from_json(fs.cat_file(f"{folder}/tokenizer.json").decode())
        texts = [source for source in sources.values() if isinstance(source, TextSource)]
        fingerprint = digest(
            "tokenizer",
            *(source.fingerprint for source in texts),
            str(self.vocab_size),
            self.tokenizer_type,
            str(self.streaming),
        )[:32]
        path = self.cache_dir / "tokenizers" / f"{fingerprint}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                documents: Iterator[str] = chain.from_iterable(
                    source.texts(BadDocuments(skip=self.skip_bad)) for source in texts
                )
                if self.streaming:
                    documents = _first_bytes(documents, TOKENIZER_BYTES)
                bar = tqdm(documents, "training the tokenizer", unit=" documents", unit_scale=True, **_BAR)
                try:
                    text = Tokenizer.train(bar, self.vocab_size, self.tokenizer_type).to_json()
                except BadDocument as error:
                    raise ValueError(f"{error}\n{self._remedy}") from None
                write_text(path, text)
        return Tokenizer.load(path)

    @property
    def _remedy(self) -> str:
        """What can be done about a bad document."""
        if self.streaming:
            return "streaming skips no documents: correct the file"
        return "`lit-lm prepare --on_bad_document skip` skips such documents"

    def store(self, split: Split, name: str, tokenizer: Tokenizer) -> TokenStore:
        """A source's store of a split, written first if it is not there.

        Raises:
            ValueError, OSError: if the source cannot be read, has no text, or has ids outside the vocabulary.
        """
        source = self.validation_sources[name] if split == "validation" else self.sources[split][name]
        try:
            if isinstance(source, StoreSource):
                return self._finished_store(source, tokenizer)
            writer = self.writer(source, tokenizer)
            if not (writer.path / "meta.json").exists():
                self.write(split, source, writer)
                writer.finish()
            return TokenStore(writer.path)
        except ValueError as error:
            raise ValueError(f"data.source {name} ({split}): {error}") from None

    def writer(self, source: TextSource | IdSource, tokenizer: Tokenizer) -> StoreWriter:
        """The writer of a source's store, in the cache."""
        name = digest("store", FORMAT, source.fingerprint, tokenizer.fingerprint)[:32]
        return StoreWriter(self.cache_dir / "stores" / name, source.fingerprint, tokenizer, len(source.shards))

    def write(self, split: Split, source: TextSource | IdSource, writer: StoreWriter, part: Part = (1, 1)) -> None:
        """Write the shards of a part that are not there yet."""
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
            tqdm.write(f"skipped {bad.count} bad documents, the first: {bad.first}")

    def _finished_store(self, source: StoreSource, tokenizer: Tokenizer) -> TokenStore:
        fs, path = file_system(source.address)
        store = TokenStore(Path(path)) if is_local(fs) else fetch_store(source.address, self.cache_dir / "stores")
        if store.meta.shards[0].tokenizer != tokenizer.fingerprint:
            raise ValueError(
                "it was prepared with another tokenizer; prepare all sources with one, "
                f"such as --data.tokenizer {source.address}/tokenizer.json"
            )
        return store


def _shown(chunks: Iterable[Chunk], bar: tqdm) -> Iterator[Chunk]:
    """The chunks, with their speed shown."""
    start, num_bytes, documents = time.perf_counter(), 0, 0
    for chunk in chunks:
        yield chunk
        num_bytes, documents = num_bytes + chunk.bytes, documents + chunk.documents
        elapsed = time.perf_counter() - start
        bar.set_postfix_str(f"{num_bytes / elapsed / 1e6:.1f} MB/s, {documents / elapsed:,.0f} documents/s")


def _first_bytes(documents: Iterable[str], num_bytes: int) -> Iterator[str]:
    """Documents until they make up at least `num_bytes` of UTF-8."""
    for document in documents:
        if num_bytes <= 0:
            return
        num_bytes -= len(document.encode())
        yield document


def _id_chunks(blocks: Iterable[Ids], tokenizer: Tokenizer) -> Iterator[Chunk]:
    for block in blocks:
        check_ids(block, tokenizer)
        text = tokenizer.decode(block.tolist())
        documents = int((block == tokenizer.end_id).sum())
        end = len(tokenizer.decode([tokenizer.end_id]))
        characters = len(text) - documents * end
        yield Chunk(block, documents, len(text.encode()) - documents * end, characters)


_BAR: dict[str, Any] = {"leave": False, "disable": None}
"""A bar in a terminal, and nothing elsewhere."""
