"""Training windows directly from the shards of a source, tokenized during training, without a token store.

Several streams read the source in parallel. Each reads its own shards and contributes the same number of windows to
every step. The windows depend only on the config and the seed. Devices and workers share the streams, so the global
batches are the same for any number of them; a stream that two devices need is read by both.

    epoch       each shard is assigned to one stream; the assignment and the order are shuffled by (seed, epoch). A
                stream whose shards have less text reaches its next epoch sooner.
    block       `shuffle_buffer` documents of a stream, shuffled by (seed, stream, start of the block)
    window      context_length inputs and their targets, cut from documents with END_OF_TEXT after each, as from a
                token store with stride context_length; nothing is lost between blocks, shards or epochs

So the state of a stream is a few numbers: the start of its block, and how much of the block has been used. Resuming
reads the shard up to the block, and the block again. (`datasets` also finds its position in a shard by reading up to
it, and the format of its states depends on its version.)
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
from lit_lm.data.loader import Batch, data_share, ignore_stop_signals, num_micro_batches, unchanged
from lit_lm.data.order import permute
from lit_lm.data.readers import BadDocuments
from lit_lm.data.sources import TextSource
from lit_lm.tokenizer.tokenizer import Tokenizer

ENCODED_AT_ONCE = 64
"""Documents passed to the tokenizer at a time."""


class StreamPosition(NamedTuple):
    """Start of a stream's next window."""

    epoch: int = 0
    shard: int = 0
    """Index among the stream's shards in this epoch."""
    row: int = 0
    """Number of documents of the shard before the block."""
    document: int = 0
    """Number of used documents of the block."""
    token: int = 0
    """Number of used tokens of the next document."""


@dataclass(frozen=True)
class StreamingText:
    """An endless sequence of windows of a source, read by several streams."""

    source: TextSource
    tokenizer: Tokenizer
    context_length: int
    batch_size: int
    """Windows per optimizer step, over all streams."""
    num_streams: int
    shuffle_buffer: int
    """Documents per block; 0: no shuffling."""
    seed: int

    @property
    def windows_per_step(self) -> int:
        """Windows that each stream contributes to a step."""
        return self.batch_size // self.num_streams

    @property
    def identity(self) -> str:
        """Everything that determines the meaning of a position."""
        return repr(
            (self.source.fingerprint, len(self.source.shards), self.num_streams, self.shuffle_buffer, self.seed)
        )

    def positions(self, state: Mapping[str, Any] | None) -> list[StreamPosition] | None:
        """The positions in a state; None if there is no state, or it belongs to another text."""
        if state is None or state["identity"] != self.identity:
            return None
        return [StreamPosition(*position) for position in state["positions"]]

    def beginning(self) -> list[StreamPosition]:
        """The position of each stream before the first step."""
        return [StreamPosition() for _ in range(self.num_streams)]

    def steps(self, stream: int, position: StreamPosition) -> Iterator[tuple[Tensor, StreamPosition]]:
        """Yield a stream's windows of each step, ids of shape (windows, T + 1), and its position after the step."""
        windows = self.windows(stream, position)
        while True:
            taken = list(islice(windows, self.windows_per_step))
            yield torch.from_numpy(np.stack([ids for ids, _ in taken])), taken[-1][1]

    def windows(self, stream: int, position: StreamPosition) -> Iterator[tuple[Ids, StreamPosition]]:
        """Yield the windows of a stream, T + 1 ids each, and the position after each, which is T ids later.

        Raises:
            ValueError: if the source has no text.
        """
        documents: deque[tuple[StreamPosition, Ids]] = deque()
        token = position.token  # start of the next window in `documents`
        length = -token  # number of ids in `documents` from there on
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
        """Yield a heading and the ids of each window of step `step` (from 1).

        Args:
            step: The step.
            state: State of the streams in a checkpoint; reading starts there if it is before `step`, else at the
                beginning of the run.
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
            # "units" must not change: the order depends on it
            order = permute(order, size=len(order), key=f"{self.seed}:units:{epoch}")
        return [int(shard) for shard in order[stream :: self.num_streams]]

    def _encoded(self, stream: int, position: StreamPosition) -> Iterator[tuple[StreamPosition, Ids]]:
        """Yield the position of each document, and its ids with END_OF_TEXT."""
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
        """Yield the position of each block, and its documents."""
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
        """Raise ValueError if the source has no text, where a stream would search for its next document forever."""
        if all(next(self._documents(shard), None) is None for shard in range(len(self.source.shards))):
            raise ValueError("the source has no text")


def fitting_num_streams(most: int, num_shards: int, *, batch_size: int, shuffle_buffer: int) -> int:
    """The largest number of streams, up to `most`, that gives each a shard and an equal share of the batch; 1 if the
    order of the source is kept.
    """
    most = min(most, num_shards, batch_size) if shuffle_buffer else 1
    return next(number for number in range(most, 0, -1) if batch_size % number == 0)


def sharing_problem(streams: int, devices: int, most: int) -> str | None:
    """What to report if devices read the same stream; None if each stream is read by one.

    Args:
        streams: Number of streams.
        devices: Number of devices.
        most: The limit of the number of streams that the user can change, data.num_streams.
    """
    if devices <= streams:
        return None
    remedy = f"start a run with --data.num_streams {devices}" if most < devices else "split the source into more files"
    return (
        f"{devices} devices share {streams} streams, so up to {-(-devices // streams)} of them read and tokenize the "
        f"same text; {remedy}"
    )


StreamWindows = dict[int, tuple[Tensor, StreamPosition]]
"""Stream -> its windows of a step that this device needs, (windows, T + 1), and its position after the step."""


class _StepWindows(IterableDataset[StreamWindows | Exception]):
    """The windows that a worker contributes to each step; an error of the source is yielded as the last item."""

    def __init__(
        self, text: StreamingText, positions: Mapping[int, StreamPosition], rows: range, num_steps: int
    ) -> None:
        """
        Args:
            text: The text to read.
            positions: Positions of the streams that this device needs.
            rows: This device's rows of the global batch, which has the windows of stream 0, of stream 1, ...
            num_steps: Number of remaining steps.
        """
        self.text, self.positions, self.rows, self.num_steps = text, positions, rows, num_steps

    def __iter__(self) -> Iterator[StreamWindows | Exception]:
        worker, streams = get_worker_info(), sorted(self.positions)
        if worker is not None:
            streams = streams[worker.id :: worker.num_workers]
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are parallel already
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
    """This device's micro-batches from the Trainer's current step to its last, and the stream positions after each."""

    def __init__(
        self,
        text: StreamingText,
        positions: Sequence[StreamPosition],
        trainer: Trainer,
        *,
        micro_batch_size: int,
        num_workers: int,
    ) -> None:
        """
        Args:
            text: The text to read.
            positions: Positions of all streams at the Trainer's current step.
            trainer: The Trainer.
            micro_batch_size: Windows per micro-batch.
            num_workers: Maximum number of worker processes; 0: read in this process.
        """
        self.text, self.trainer, self.micro_batch_size = text, trainer, micro_batch_size
        rank, devices = data_share(trainer)
        share = text.batch_size // devices
        self.rows = range(rank * share, (rank + 1) * share)
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
            worker_init_fn=ignore_stop_signals,
        )
        items = iter(loader)  # one item per worker, in turn
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
        """Positions of all streams after `step`, the current or a prefetched step. Must be called on all devices."""
        positions = self._positions[step]
        if self.trainer.world_size > 1 and torch.distributed.is_initialized():
            gathered: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(gathered, positions)
            positions = {stream: position for part in gathered for stream, position in part.items()}
        return [positions[stream] for stream in range(self.text.num_streams)]

    def _remember(self, step: int, positions: dict[int, StreamPosition]) -> None:
        """Record the positions after a step. Batches are prefetched, so all since the current step are kept."""
        kept = {s: p for s, p in self._positions.items() if s >= self.trainer.global_step}
        self._positions = kept | {step: positions}


def _slice(documents: Sequence[tuple[StreamPosition, Ids]], begin: int, end: int) -> Ids:
    """Ids `begin` to `end` - 1 of the concatenated documents."""
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
