"""Statistics of token stores, and the training windows of a step."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lit_lm.data.ids import Ids
from lit_lm.data.token_store import TokenStore
from lit_lm.data.windowed import WindowedData
from lit_lm.data.windows import MAX_STEPS
from lit_lm.tokenizer.tokenizer import Tokenizer

BAR_WIDTH = 40
NUM_FREQUENT = 20


@dataclass(frozen=True)
class Profile:
    """Counts over all tokens of a store."""

    lengths: Ids
    """Element n: number of documents with 2^n to 2^(n+1) - 1 tokens, including END_OF_TEXT."""
    frequencies: Ids
    """Number of occurrences of each token id."""


def profile(store: TokenStore, tokenizer: Tokenizer) -> Profile:
    """Count in one pass over a store. A last document without END_OF_TEXT counts too."""
    lengths = np.zeros(64, dtype=np.int64)
    frequencies = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    begun = 0  # tokens of a document that continues in the next block
    for ids in store.blocks():
        frequencies += np.bincount(ids, minlength=len(frequencies))
        ends = np.flatnonzero(ids == tokenizer.end_id) + 1
        sizes = np.diff(ends, prepend=-begun)
        lengths += np.bincount(np.frexp(sizes)[1] - 1, minlength=64)
        begun = len(ids) - int(ends[-1]) if len(ends) else begun + len(ids)
    if begun:
        lengths[begun.bit_length() - 1] += 1
    return Profile(lengths, frequencies)


def info(data: WindowedData) -> Iterator[str]:
    """Yield lines with sizes, digests, document lengths and the most frequent tokens of each source and split."""
    assert data.tokenizer is not None
    yield f"tokenizer: {data.tokenizer.vocab_size:,} tokens, {data.tokenizer.fingerprint[:16]}"
    if (text := data.streaming_text) is not None:
        name, shards = data.corpus.names[0], len(text.source.shards)
        yield f"\ntrain data of {name}, streamed"
        yield f"  {shards:,} shards read by {text.num_streams} streams, fingerprint {text.source.fingerprint[:16]}"
    for split, stores in data.stores.items():
        for (name, store), weight in zip(stores.items(), data.corpus.weights, strict=False):
            meta = store.meta
            share = f", {weight:.1%} of the mixture" if split == "train" and len(stores) > 1 else ""
            yield f"\n{split} data of {name}{share}"
            yield f"  {meta.documents:,} documents, {meta.bytes:,} bytes, {meta.characters:,} characters"
            skipped = f", {meta.skipped:,} bad documents skipped" if meta.skipped else ""
            yield f"  {meta.tokens:,} tokens, {meta.bytes_per_token:.3f} bytes per token{skipped}"
            windows = data.windows(split)
            size = windows.sizes[windows.stores.index(store)]
            yield f"  {size:,} windows of {data.context_length:,} tokens, {windows.stride:,} apart"
            if split == "validation" and (read := data.num_validated()[windows.stores.index(store)]) < size:
                yield f"  {read:,} of them are read at each validation (data.val_tokens)"
            yield f"  {len(meta.shards)} shards in {store.path}, digest {meta.sha256[:16]}"
            found = profile(store, data.tokenizer)
            yield "  tokens per document:"
            yield from (f"    {line}" for line in _histogram(found.lengths))
            yield "  most frequent tokens:"
            yield f"    {_most_frequent(found.frequencies, data.tokenizer)}"


def show(data: WindowedData, step: int) -> Iterator[str]:
    """Yield a heading and the text of each training window of step `step` (from 1).

    The special token END_OF_TEXT is printed on its own line, between two documents.

    Raises:
        ValueError: if `step` is less than 1, or more than MAX_STEPS.
    """
    if not 1 <= step <= MAX_STEPS:
        raise ValueError(f"step is {step}; it must be between 1 and {MAX_STEPS:,}")
    assert data.tokenizer is not None
    text, state = data.streaming_text, data.streaming_state
    windows = _windows_of(data, step) if text is None else text.show(step, state)
    for heading, ids in windows:
        yield heading
        ends = np.flatnonzero(ids == data.tokenizer.end_id)
        for document in np.split(ids, np.ravel(np.column_stack([ends, ends + 1]))):
            if len(document):
                yield data.tokenizer.decode(document.tolist())


def _windows_of(data: WindowedData, step: int) -> Iterator[tuple[str, Ids]]:
    windows = data.windows("train")
    names = list(data.stores["train"])
    for index in data.window_schedule.step(step):
        store, start = windows.locate(index)
        ids = windows.stores[store].read(start, start + data.context_length + 1)
        of = f" of {names[store]}" if len(names) > 1 else ""
        yield f"--- step {step}, window {index}{of}: tokens {start:,} to {start + len(ids) - 1:,} ---", ids


def _histogram(lengths: Ids) -> Iterator[str]:
    used = np.flatnonzero(lengths)
    if not len(used):
        return
    for power in range(used[0], used[-1] + 1):
        count = int(lengths[power])
        bar = "█" * round(BAR_WIDTH * count / int(lengths.max())) or ("▏" if count else "")
        bounds = f"{2**power:,} to {2 ** (power + 1) - 1:,}"
        yield f"{bounds:>20}  {bar:<{BAR_WIDTH}}  {count:,}"


def _most_frequent(frequencies: Ids, tokenizer: Tokenizer) -> str:
    total = frequencies.sum()
    likeliest = np.argsort(-frequencies, kind="stable")[:NUM_FREQUENT]
    shares = [(tokenizer.decode([int(i)]), frequencies[i] / total) for i in likeliest if frequencies[i]]
    return ", ".join(f"{token!r} {share:.1%}" for token, share in shares)
