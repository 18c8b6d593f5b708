"""Data sets of the Hugging Face hub, or of a folder laid out like one, as sources."""

import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import datasets

from lit_lm.data.readers import BadDocuments, TextPart, in_parts, text_in
from lit_lm.data.sources import TextSource, digest

ROWS = 100
"""Rows that are read at a time."""


def open_data_set(name: str, text_field: str) -> tuple[TextSource, TextSource | None]:
    """The splits train and validation of a data set; None if it has no split validation.

    Raises:
        ValueError: if it has no split train.
        ConnectionError: if it cannot be loaded.
    """
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it reports every attempt; the last one is enough
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

    def source(split: str) -> TextSource:
        shards = range(rows[split].num_shards)
        fingerprint = digest("hub", name, str(builder.hash), split, text_field)
        return TextSource([partial(_read_shard, rows[split], shard, name, text_field) for shard in shards], fingerprint)

    return source("train"), source("validation") if "validation" in rows else None


def _read_shard(dataset: Any, index: int, name: str, text_field: str, bad: BadDocuments) -> Iterator[TextPart]:
    # by batches: iterated by rows in a DataLoader's worker, it would share itself out among the workers
    batches = dataset.shard(num_shards=dataset.num_shards, index=index).iter(batch_size=ROWS)
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
                yield from in_parts(text_in(dict(zip(columns, row, strict=True)), text_field))
            except ValueError as error:
                bad.add(partial("hub:{}, shard {}, row {}".format, name, index, number), str(error))


def _unreachable(name: str, error: Exception) -> ConnectionError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ConnectionError(
        f"the data set {name} could not be loaded from the Hugging Face hub ({reason})\n"
        "use a local file instead (--data.source FILE.txt) or the bundled stories (--data.source stories)"
    )
