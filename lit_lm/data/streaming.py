"""Training windows straight from the shards of a source, tokenized as they are read, without a token store.

The source is read by several streams at once: each moves through shards of its own, and each gives the same number of
windows to every step. Which windows those are follows from the config and the seed alone. Devices and workers share the
streams, so any number of them sees the same global batches; a stream that two devices need is read by both.

    epoch       every shard goes to one stream; which, and in which order, is shuffled by (seed, epoch). A stream whose
                shards have less text than another's comes to its next epoch sooner.
    block       `shuffle_buffer` documents of a stream, shuffled by (seed, stream, where the block begins)
    window      context_length inputs and their targets, cut from documents with END_OF_TEXT after each, as from a
                token store whose stride is context_length; nothing is lost between blocks, shards or epochs

So the state of a stream is a few numbers: where its block begins, and how much of the block has been used. To resume,
the shard is read up to there and the block once more. (`datasets` has states of its own, but it too finds its position
in a shard by reading up to it, and its states change their form with its version.)
"""

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lit_lm.data.ids import Ids
from lit_lm.data.order import permute
from lit_lm.data.readers import BadDocuments
from lit_lm.data.sources import TextSource
from lit_lm.data.windows import Batch, ignore_first_sigterm, num_micro_batches, unchanged
from lit_lm.tokenizer.tokenizer import Tokenizer

ENCODED_AT_ONCE = 64
"""Documents that are passed to the tokenizer at a time."""


class StreamPosition(NamedTuple):
    """Where the next window of a stream begins."""

    epoch: int = 0
    shard: int = 0
    """Index among the stream's shards in this epoch."""
    row: int = 0
    """Number of documents of that shard before the block."""
    document: int = 0
    """Number of documents of the block that have been used."""
    token: int = 0
    """Number of tokens of the next document that have been used."""


@dataclass(frozen=True)
class StreamingText:
    """Endless windows over a source, read by several streams."""

    source: TextSource
    tokenizer: Tokenizer
    context_length: int
    batch_size: int
    """Windows per optimizer step, over all streams."""
    num_streams: int
    shuffle_buffer: int
    """Documents per block; 0: nothing is shuffled."""
    seed: int

    @property
    def windows_per_step(self) -> int:
        """Windows that a stream gives to each step."""
        return self.batch_size // self.num_streams

    @property
    def identity(self) -> str:
        """What decides the meaning of a position."""
        return repr(
            (self.source.fingerprint, len(self.source.shards), self.num_streams, self.shuffle_buffer, self.seed)
        )

    def positions(self, state: Mapping[str, Any] | None) -> list[StreamPosition] | None:
        """The positions in a state; None if there is no state, or it is of another text."""
        if state is None or state["identity"] != self.identity:
            return None
        return [StreamPosition(*position) for position in state["positions"]]

    def beginning(self) -> list[StreamPosition]:
        """The position of each stream before the first step."""
        return [StreamPosition() for _ in range(self.num_streams)]

    def steps(self, stream: int, position: StreamPosition) -> Iterator[tuple[Tensor, StreamPosition]]:
        """What a stream gives to each step, (windows, T + 1) ids, and its position after that."""
        windows = self.windows(stream, position)
        while True:
            taken = list(islice(windows, self.windows_per_step))
            yield torch.from_numpy(np.stack([ids for ids, _ in taken])), taken[-1][1]

    def windows(self, stream: int, position: StreamPosition) -> Iterator[tuple[Ids, StreamPosition]]:
        """The windows of a stream, T + 1 ids each, and the position after each, T ids further on.

        Raises:
            ValueError: if the source has no text.
        """
        documents: deque[tuple[StreamPosition, Ids]] = deque()
        token = position.token  # where the next window begins in `documents`
        length = -token  # how many ids there are from there on
        for start, ids in self._encoded(stream, position):
            documents.append((start, ids))
            length += len(ids)
            while length > self.context_length:
                window = _slice(documents, token, token + self.context_length + 1)
                token, length = token + self.context_length, length - self.context_length
                while token >= len(documents[0][1]):
                    token -= len(documents.popleft()[1])
                yield window, documents[0][0]._replace(token=token)

    def show(self, step: int, state: Mapping[str, Any] | None) -> Iterator[tuple[str, Ids]]:
        """A heading and the ids of each window of step number `step` (from 1).

        Args:
            step: Number of the step.
            state: The positions of the streams after a step, as a checkpoint has them; the reading starts there if that
                is before `step`, and else at the beginning of the run.
        """
        positions, taken = self.beginning(), 0
        if state is not None and state["step"] < step and (known := self.positions(state)) is not None:
            positions, taken = known, state["step"]
        for stream, position in enumerate(positions):
            windows = self.windows(stream, position)
            for _ in range((step - 1 - taken) * self.windows_per_step):
                _, position = next(windows)
            for number in range(self.windows_per_step):
                shard = self._shards(stream, position.epoch)[position.shard]
                index = (step - 1) * self.batch_size + stream * self.windows_per_step + number
                heading = f"--- step {step}, window {index}: epoch {position.epoch + 1}, from shard {shard} on ---"
                ids, position = next(windows)
                yield heading, ids

    def _shards(self, stream: int, epoch: int) -> list[int]:
        order = np.arange(len(self.source.shards))
        if self.shuffle_buffer:
            order = permute(order, size=len(order), key=f"{self.seed}:units:{epoch}")  # a part of the order: it stays
        return [int(shard) for shard in order[stream :: self.num_streams]]

    def _encoded(self, stream: int, position: StreamPosition) -> Iterator[tuple[StreamPosition, Ids]]:
        """The documents' ids with END_OF_TEXT, and the position where each begins."""
        for start, texts in self._blocks(stream, position):
            order = np.arange(len(texts))
            if self.shuffle_buffer:
                key = f"{self.seed}:{stream}:{start.epoch}:{start.shard}:{start.row}"
                order = permute(order, size=len(order), key=key)
            for first in range(start.document, len(texts), ENCODED_AT_ONCE):
                batch = [texts[i] for i in order[first : first + ENCODED_AT_ONCE]]
                for number, ids in enumerate(self.tokenizer.encode_batch(batch), start=first):
                    yield start._replace(document=number, token=0), np.array([*ids, self.tokenizer.end_id])

    def _blocks(self, stream: int, position: StreamPosition) -> Iterator[tuple[StreamPosition, list[str]]]:
        """The documents of each block, and the position where it begins."""
        start, texts = position, list[str]()
        while True:
            shards = self._shards(stream, start.epoch)
            for number in range(start.shard, len(shards)):
                begin = start.row if number == start.shard else 0
                rows = islice(self._documents(shards[number]), begin, None)
                for row, text in enumerate(rows, start=begin + 1):
                    texts.append(text)
                    if len(texts) == (self.shuffle_buffer or ENCODED_AT_ONCE):
                        yield start, texts
                        start, texts = StreamPosition(start.epoch, number, row), []
            if texts:
                yield start, texts
            elif start.shard == start.row == 0:
                self._check_text()
            start, texts = StreamPosition(start.epoch + 1), []

    def _documents(self, shard: int) -> Iterator[str]:
        parts = []
        for text, ends in self.source.shards[shard](BadDocuments()):
            parts.append(text)
            if ends:
                yield "".join(parts)
                parts = []

    def _check_text(self) -> None:
        """A stream of empty shards waits for its next epoch, which comes only if there is any text."""
        if all(next(self._documents(shard), None) is None for shard in range(len(self.source.shards))):
            raise ValueError("the source has no text")


def fitting_num_streams(most: int, *, num_shards: int, batch_size: int, shuffle_buffer: int) -> int:
    """The number of streams: at most `most`, with a shard and an equal share of the batch for each; one where the order
    of the source is kept.
    """
    most = min(most, num_shards, batch_size) if shuffle_buffer else 1
    return next(number for number in range(most, 0, -1) if batch_size % number == 0)


StreamWindows = dict[int, tuple[Tensor, StreamPosition]]
"""For some streams: the windows that they give to a step of this device, (windows, T + 1), and their position after."""


class _StepWindows(IterableDataset[StreamWindows | Exception]):
    """What a worker gives to each step; an error, once, if the source has one."""

    def __init__(
        self, text: StreamingText, positions: Mapping[int, StreamPosition], rows: range, num_steps: int
    ) -> None:
        """
        Args:
            text: The text.
            positions: The streams that this device needs, and where they are.
            rows: This device's rows of the global batch, whose rows are the first stream's windows, the second's, ...
            num_steps: Number of steps to come.
        """
        self.text, self.positions, self.rows, self.num_steps = text, positions, rows, num_steps

    def __iter__(self) -> Iterator[StreamWindows | Exception]:
        worker, streams = get_worker_info(), sorted(self.positions)
        if worker is not None:
            streams = streams[worker.id :: worker.num_workers]
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are what is parallel
        steps = {stream: self.text.steps(stream, self.positions[stream]) for stream in streams}
        try:
            for _ in range(self.num_steps):
                yield {stream: self._rows_of(stream, *next(steps[stream])) for stream in streams}
        except (ValueError, OSError) as error:
            yield ValueError(str(error)) if isinstance(error, ValueError) else OSError(str(error))

    def _rows_of(self, stream: int, windows: Tensor, position: StreamPosition) -> tuple[Tensor, StreamPosition]:
        first = stream * len(windows)
        return windows[max(0, self.rows.start - first) : max(0, self.rows.stop - first)], position


class StreamingLoader:
    """Micro-batches of this device from the Trainer's present step to its last, and where the streams are after each
    step.
    """

    def __init__(
        self,
        text: StreamingText,
        positions: Sequence[StreamPosition],
        trainer: Trainer,
        *,
        micro_batch_size: int,
        num_workers: int,
    ) -> None:
        """`positions` are those of all streams at the Trainer's present step."""
        self.text, self.trainer, self.micro_batch_size = text, trainer, micro_batch_size
        share = text.batch_size // trainer.world_size
        self.rows = range(trainer.global_rank * share, (trainer.global_rank + 1) * share)
        streams = range(self.rows[0] // text.windows_per_step, self.rows[-1] // text.windows_per_step + 1)
        self.first_step = trainer.global_step
        self.num_workers = min(num_workers, len(streams))
        self.num_micro_batches = num_micro_batches(trainer, share // micro_batch_size)
        self._positions = {self.first_step: {stream: positions[stream] for stream in streams}}

    def __len__(self) -> int:
        return self.num_micro_batches

    def __iter__(self) -> Iterator[Batch]:
        num_steps = self.trainer.max_steps - self.first_step
        loader = DataLoader(
            _StepWindows(self.text, self._positions[self.first_step], self.rows, num_steps),
            batch_size=None,
            collate_fn=unchanged,
            num_workers=self.num_workers,
            worker_init_fn=ignore_first_sigterm,
        )
        items = iter(loader)  # from the workers in turn
        for step in range(self.first_step, self.trainer.max_steps):
            step_windows: StreamWindows = {}
            for _ in range(max(1, self.num_workers)):
                step_windows |= _checked(next(items))
            self._remember(step + 1, {stream: position for stream, (_, position) in step_windows.items()})
            windows = torch.cat([step_windows[stream][0] for stream in sorted(step_windows)])
            if torch.cuda.is_available():
                windows = windows.pin_memory()
            for micro_batch in torch.split(windows, self.micro_batch_size):
                yield micro_batch[:, :-1], micro_batch[:, 1:]

    def positions_after(self, step: int) -> list[StreamPosition]:
        """Where all streams are after `step` steps, the present or a prepared one. All devices must ask."""
        positions = self._positions[step]
        if self.trainer.world_size > 1 and torch.distributed.is_initialized():
            gathered: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(gathered, positions)
            positions = {stream: position for part in gathered for stream, position in part.items()}
        return [positions[stream] for stream in range(self.text.num_streams)]

    def _remember(self, step: int, positions: dict[int, StreamPosition]) -> None:
        """Batches are prepared ahead of their steps: keep the positions since the last step taken."""
        kept = {s: p for s, p in self._positions.items() if s >= self.trainer.global_step}
        self._positions = kept | {step: positions}


def _slice(documents: Sequence[tuple[StreamPosition, Ids]], begin: int, end: int) -> Ids:
    """Ids number `begin` to `end` - 1 of the documents, one after the other."""
    parts = []
    for _, ids in documents:
        parts.append(ids[max(0, begin) : end])
        begin, end = begin - len(ids), end - len(ids)
        if end <= 0:
            break
    return np.concatenate(parts)


def _checked(windows: StreamWindows | Exception) -> StreamWindows:
    if isinstance(windows, Exception):
        hint = "Fix this, then resume: run the same command with --ckpt_path last."
        raise type(windows)(f"{windows}\n{hint}")
    return windows
