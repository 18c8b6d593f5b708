"""Datasets on the Hugging Face hub, or in a local folder with the same layout, as sources."""

import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import datasets

from lit_lm.data.readers import BadDocuments, TextPart, TextShard, in_parts, text_in
from lit_lm.errors import first_line
from lit_lm.files import digest

ROWS = 100
"""Rows read at a time."""


def open_data_set(name: str, config: str, text_field: str) -> dict[str, tuple[list[TextShard], str]]:
    """The shards of a dataset's split train and, if it has one, validation, each with its fingerprint.

    Args:
        name: Name on the hub, or a local folder.
        config: Name of its configuration; "": its only or default one.
        text_field: Name of the text field.

    Raises:
        ValueError: if it has no train split, or several configurations of which none is chosen.
        ConnectionError: if it cannot be loaded.
    """
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs every failed attempt
    try:
        builder = _builder(name, config)
        splits = builder.info.splits or datasets.get_dataset_split_names(name, config or None)
        if "train" not in splits:
            raise ValueError(f"the dataset {name} has no train split, only {list(splits)}")
        rows = {
            split: builder.as_streaming_dataset(split=split) for split in splits if split in ("train", "validation")
        }
    except ValueError:
        raise
    except Exception as error:  # network, hub and loader raise different types
        raise _unreachable(name, error) from None

    return {
        split: (
            [partial(_read_shard, data, shard, name, text_field) for shard in range(data.num_shards)],
            digest("hub", name, *([config] if config else []), str(builder.hash), split, text_field),
        )
        for split, data in rows.items()
    }


def _builder(name: str, config: str) -> Any:
    try:
        return datasets.load_dataset_builder(name, config or None)
    except ValueError as error:
        configs = datasets.get_dataset_config_names(name)
        if len(configs) < 2 or config in configs:
            raise ValueError(f"the dataset {name} cannot be read: {first_line(error)}") from None
        raise ValueError(
            f"the dataset {name} has the configurations {', '.join(configs)}; choose one, as in hub:{name}:{configs[0]}"
        ) from None


def _read_shard(dataset: Any, index: int, name: str, text_field: str, bad: BadDocuments) -> Iterator[TextPart]:
    # iter() by batches, because iterating over rows in a DataLoader worker divides the shard among the workers
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
    return ConnectionError(
        f"the dataset {name} could not be loaded from the Hugging Face hub ({first_line(error)})\n"
        "use a local file instead (--data.source FILE.txt) or the bundled stories (--data.source stories)"
    )
