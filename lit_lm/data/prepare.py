"""Preparation of a corpus: write its token stores, whole or in parts by several jobs; check and copy them."""

import os
from collections.abc import Iterator, Mapping, Sequence

from tqdm import tqdm

from lit_lm.data.corpus import Corpus, Part
from lit_lm.data.filesystem import file_system, is_local
from lit_lm.data.sources import Split, StoreSource
from lit_lm.data.token_store import TokenStore, tokens_file
from lit_lm.tokenizer.tokenizer import Tokenizer


def prepare(
    corpus: Corpus, tokenizer: Tokenizer, part: Part | None, *, merge: bool, output: str | None
) -> Iterator[str]:
    """Write the token stores of a corpus, or a part of them; yield a report line by line.

    Args:
        corpus: The corpus.
        tokenizer: Its tokenizer.
        part: Part to write; None: everything.
        merge: Write no shards; check that all are present and undamaged.
        output: Folder or URL to copy the finished stores and the tokenizer to.

    Raises:
        ValueError, OSError: if a source cannot be read, or, with `merge`, shards are missing or damaged.
    """
    if merge and part is not None:
        raise ValueError("--merge runs after all parts are written; pass either --part or --merge")
    if output is not None and (part is not None or len(corpus.names) > 1):
        raise ValueError("--output needs all of one source; leave out --part, and prepare each source separately")
    if output is not None:
        _check_output(corpus, output)
    stores: dict[Split, TokenStore] = {}
    yield f"tokenizer: {tokenizer.vocab_size:,} tokens"
    for split, names in corpus.splits.items():
        if split == "train" and corpus.streaming:
            yield "train data: a streamed source is tokenized during training"
            continue
        for name in names:
            source, what = corpus.sources[split][name], f"{split} data of {name}"
            if isinstance(source, StoreSource):
                stores[split] = corpus.store(split, name, tokenizer)
            else:
                writer = corpus.writer(source, tokenizer)
                if not merge:
                    corpus.write(split, source, writer, part or (1, 1))
                if part is not None:
                    yield f"{what}: part {part[0]} of {part[1]} is complete"
                    continue
                if missing := writer.missing():
                    raise ValueError(
                        f"{len(missing)} of {writer.num_shards} shards are missing in the {what} "
                        f"({_listed(missing)}); run lit-lm prepare with their --part, or without --part"
                    )
                stores[split] = writer.finish()
            if merge:
                in_cache = stores[split].path.is_relative_to(corpus.cache_dir / "stores")
                _check_digests(stores[split], what, in_cache=in_cache)
            yield _summary(what, stores[split])
    if part is not None:
        yield "when all parts are complete, run lit-lm prepare --merge with the same options"
    if output is not None:
        _copy(stores, tokenizer, output)
        yield f"copied to {output}; use it with --data.source {output}"


def _check_output(corpus: Corpus, output: str) -> None:
    """Check, before any work is done, that the stores can be copied to a folder or URL."""
    file_system(output)
    if corpus.streaming:
        raise ValueError("--output needs a token store of the training data; leave out data.streaming")
    for sources in corpus.sources.values():
        for source in sources.values():
            if isinstance(source, StoreSource) and _place(source.address.rpartition("/")[0]) == _place(output):
                raise ValueError(f"--output {output} is data.source itself; choose another folder")


def _place(folder: str) -> str:
    """A path without links, or a URL: the same for all names of a place."""
    fs, path = file_system(folder)
    return os.path.realpath(path) if is_local(fs) else str(fs.unstrip_protocol(path))


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")


def _check_digests(store: TokenStore, what: str, *, in_cache: bool) -> None:
    if damaged := store.damaged():
        remedy = "prepare or copy it again from its source"
        if in_cache:
            (store.path / "meta.json").unlink()
            for number in damaged:
                tokens_file(store.path, number).unlink()
            remedy = "they are deleted; run lit-lm prepare again"
        raise ValueError(f"the {what} has damaged shards ({_listed(damaged)}) in {store.path}; {remedy}")


def _summary(what: str, store: TokenStore) -> str:
    meta = store.meta
    skipped = f", {meta.skipped:,} bad documents skipped" if meta.skipped else ""
    return (
        f"{what}: {meta.documents:,} documents, {meta.bytes:,} bytes, {meta.tokens:,} tokens, "
        f"{meta.bytes_per_token:.3f} bytes per token{skipped}; {store.path}"
    )


def _copy(stores: Mapping[Split, TokenStore], tokenizer: Tokenizer, output: str) -> None:
    """Copy the stores to a folder that can be used as a source once its last file, train/meta.json, is written."""
    fs, path = file_system(output)
    if fs.exists(f"{path}/train/meta.json"):
        fs.rm(f"{path}/train/meta.json")
    for split, store in stores.items():
        fs.makedirs(f"{path}/{split}", exist_ok=True)
        numbers = range(len(store.meta.shards))  # in the folder, there may be others, which nobody has checked
        for number in tqdm(numbers, f"copying {split} data", leave=False, disable=None):
            file = tokens_file(store.path, number)
            fs.put_file(str(file), f"{path}/{split}/{file.name}")
        fs.pipe_file(f"{path}/{split}/tokenizer.json", tokenizer.to_json().encode())
    for split in ("validation", "train"):
        fs.put_file(str(stores[split].path / "meta.json"), f"{path}/{split}/meta.json")
