"""Training windows straight from the units of a source, tokenized as they are read, without a token store.

The stream is read in lanes: places that move through units of their own, each giving the same number of windows to
every step. Which windows those are follows from the config and the seed alone. Devices and workers share the lanes
out, so any number of them sees the same global batches; a lane that two devices need is read by both.

    epoch       every unit goes to one lane; which, and in which order, is shuffled by (seed, epoch). A lane whose
                units have less text than another's comes to its next epoch sooner.
    block       `shuffle_buffer` documents of a lane, shuffled by (seed, lane, where the block begins)
    window      context_length inputs and their targets, cut from documents with END_OF_TEXT after each, as from a
                token store whose stride is context_length; nothing is lost between blocks, units or epochs

So the state of a lane is a few numbers: where its block begins, and how much of the block has been taken. To go on, the
unit is read up to there and the block once more. (`datasets` has states of its own, but it finds a place in a shard by
reading up to it too, and its states change their form with its version.)
"""

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lit_lm.data.order import permute
from lit_lm.data.readers import BadDocuments
from lit_lm.data.sources import TextSource
from lit_lm.data.windows import Batch, num_micro_batches, outlive_a_signal
from lit_lm.tokenizer.tokenizer import Tokenizer

Ids = npt.NDArray[np.int64]

ENCODED_AT_ONCE = 64
"""Documents that are handed to the tokenizer at a time."""


class Place(NamedTuple):
    """Where a lane's next window begins."""

    epoch: int = 0
    unit: int = 0
    """Number among the lane's units in this epoch."""
    row: int = 0
    """Documents of that unit that lie before the block."""
    document: int = 0
    """Documents that have been taken from the block."""
    token: int = 0
    """Tokens that have been taken from the next document."""


@dataclass(frozen=True)
class TextStream:
    """An endless stream of windows over a source, in lanes."""

    source: TextSource
    tokenizer: Tokenizer
    context_length: int
    batch_size: int
    """Windows per optimizer step, over all lanes."""
    num_lanes: int
    shuffle_buffer: int
    """Documents per block; 0: nothing is shuffled."""
    seed: int

    @property
    def windows_per_step(self) -> int:
        """Windows that a lane gives to each step."""
        return self.batch_size // self.num_lanes

    @property
    def identity(self) -> str:
        """What decides what a place means."""
        return repr((self.source.fingerprint, len(self.source.units), self.num_lanes, self.shuffle_buffer, self.seed))

    def places(self, state: Mapping[str, Any] | None) -> list[Place] | None:
        """The places that a state tells; None if there is no state, or it is another stream's."""
        if state is None or state["of"] != self.identity:
            return None
        return [Place(*place) for place in state["places"]]

    def beginning(self) -> list[Place]:
        """The place of each lane before the first step."""
        return [Place() for _ in range(self.num_lanes)]

    def steps(self, lane: int, place: Place) -> Iterator[tuple[Tensor, Place]]:
        """What a lane gives to each step, (windows, T + 1) ids, and its place after that."""
        windows = self.windows(lane, place)
        while True:
            taken = list(islice(windows, self.windows_per_step))
            yield torch.from_numpy(np.stack([ids for ids, _ in taken])), taken[-1][1]

    def windows(self, lane: int, place: Place) -> Iterator[tuple[Ids, Place]]:
        """The windows of a lane, T + 1 ids each, and the place after each, T ids further on.

        Raises:
            ValueError: if the source has no text.
        """
        documents: deque[tuple[Place, Ids]] = deque()
        token, length = place.token, -place.token  # where the next window begins in `documents`, and what is left then
        for start, ids in self._encoded(lane, place):
            documents.append((start, ids))
            length += len(ids)
            while length > self.context_length:
                window = _first(documents, token, token + self.context_length + 1)
                token, length = token + self.context_length, length - self.context_length
                while token >= len(documents[0][1]):
                    token -= len(documents.popleft()[1])
                yield window, documents[0][0]._replace(token=token)

    def show(self, step: int, state: Mapping[str, Any] | None) -> Iterator[tuple[str, Ids]]:
        """A heading and the ids of each window of step number `step` (from 1).

        Args:
            step: Number of the step.
            state: Where the lanes are after a step, as a checkpoint has it; the reading begins there if it is not too
                far, and else at the beginning of the run.
        """
        places, taken = self.beginning(), 0
        if state is not None and state["step"] < step and (known := self.places(state)) is not None:
            places, taken = known, state["step"]
        for lane, place in enumerate(places):
            windows = self.windows(lane, place)
            for _ in range((step - 1 - taken) * self.windows_per_step):
                _, place = next(windows)
            for number in range(self.windows_per_step):
                unit = self._units(lane, place.epoch)[place.unit]
                position = (step - 1) * self.batch_size + lane * self.windows_per_step + number
                heading = f"--- step {step}, window {position}: epoch {place.epoch + 1}, from unit {unit} on ---"
                ids, place = next(windows)
                yield heading, ids

    def _units(self, lane: int, epoch: int) -> list[int]:
        order = np.arange(len(self.source.units))
        if self.shuffle_buffer:
            order = permute(order, size=len(order), key=f"{self.seed}:units:{epoch}")
        return [int(unit) for unit in order[lane :: self.num_lanes]]

    def _encoded(self, lane: int, place: Place) -> Iterator[tuple[Place, Ids]]:
        """The documents' ids with END_OF_TEXT, and the place where each begins."""
        for start, texts in self._blocks(lane, place):
            order = np.arange(len(texts))
            if self.shuffle_buffer:
                key = f"{self.seed}:{lane}:{start.epoch}:{start.unit}:{start.row}"
                order = permute(order, size=len(order), key=key)
            for first in range(start.document, len(texts), ENCODED_AT_ONCE):
                batch = [texts[i] for i in order[first : first + ENCODED_AT_ONCE]]
                for number, ids in enumerate(self.tokenizer.encode_batch(batch), start=first):
                    yield start._replace(document=number, token=0), np.array([*ids, self.tokenizer.end_id])

    def _blocks(self, lane: int, place: Place) -> Iterator[tuple[Place, list[str]]]:
        """The documents of each block, and the place where it begins."""
        start, texts = place, list[str]()
        while True:
            units = self._units(lane, start.epoch)
            for number in range(start.unit, len(units)):
                begin = start.row if number == start.unit else 0
                rows = islice(self._documents(units[number]), begin, None)
                for row, text in enumerate(rows, start=begin + 1):
                    texts.append(text)
                    if len(texts) == (self.shuffle_buffer or ENCODED_AT_ONCE):
                        yield start, texts
                        start, texts = Place(start.epoch, number, row), []
            if texts:
                yield start, texts
            elif start.unit == start.row == 0:
                self._check_text()
            start, texts = Place(start.epoch + 1), []

    def _documents(self, unit: int) -> Iterator[str]:
        parts = []
        for text, ends in self.source.units[unit](BadDocuments()):
            parts.append(text)
            if ends:
                yield "".join(parts)
                parts = []

    def _check_text(self) -> None:
        """A lane with nothing but empty units waits for its next epoch, which comes only if there is any text."""
        if all(next(self._documents(unit), None) is None for unit in range(len(self.source.units))):
            raise ValueError("the source has no text")


def lanes_for(lanes: int, *, num_units: int, batch_size: int, shuffle_buffer: int) -> int:
    """The number of lanes: at most `lanes`, a unit and an equal share of the batch for each; one if order is kept."""
    most = min(lanes, num_units, batch_size) if shuffle_buffer else 1
    return next(number for number in range(most, 0, -1) if batch_size % number == 0)


Part = dict[int, tuple[Tensor, Place]]
"""For some lanes: the windows that they give to a step of this device, (windows, T + 1), and their place after it."""


class _Parts(IterableDataset[Part | Exception]):
    """What a worker gives to each step; an error, once, if the source has one."""

    def __init__(self, stream: TextStream, places: Mapping[int, Place], rows: range, num_steps: int) -> None:
        """
        Args:
            stream: The stream.
            places: The lanes that this device needs, and where they are.
            rows: This device's rows of the global batch, whose rows are the first lane's windows, the second's, ...
            num_steps: How many steps are to come.
        """
        self.stream, self.places, self.rows, self.num_steps = stream, places, rows, num_steps

    def __iter__(self) -> Iterator[Part | Exception]:
        worker, lanes = get_worker_info(), sorted(self.places)
        if worker is not None:
            lanes = lanes[worker.id :: worker.num_workers]
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are what is parallel
        steps = {lane: self.stream.steps(lane, self.places[lane]) for lane in lanes}
        try:
            for _ in range(self.num_steps):
                yield {lane: self._rows_of(lane, *next(steps[lane])) for lane in lanes}
        except (ValueError, OSError) as error:
            yield ValueError(str(error)) if isinstance(error, ValueError) else OSError(str(error))

    def _rows_of(self, lane: int, windows: Tensor, place: Place) -> tuple[Tensor, Place]:
        first = lane * len(windows)
        return windows[max(0, self.rows.start - first) : max(0, self.rows.stop - first)], place


class StreamBatches:
    """Micro-batches of this device from the Trainer's present step to its last, and where the lanes are after each."""

    def __init__(
        self, stream: TextStream, places: Sequence[Place], trainer: Trainer, *, micro_batch_size: int, num_workers: int
    ) -> None:
        """`places` are those of all lanes at the Trainer's present step."""
        self.stream, self.trainer, self.micro_batch_size = stream, trainer, micro_batch_size
        share = stream.batch_size // trainer.world_size
        self.rows = range(trainer.global_rank * share, (trainer.global_rank + 1) * share)
        lanes = range(self.rows[0] // stream.windows_per_step, self.rows[-1] // stream.windows_per_step + 1)
        self.first_step = trainer.global_step
        self.num_workers = min(num_workers, len(lanes))
        self.num_micro_batches = num_micro_batches(trainer, share // micro_batch_size)
        self._places = {self.first_step: {lane: places[lane] for lane in lanes}}

    def __len__(self) -> int:
        return self.num_micro_batches

    def __iter__(self) -> Iterator[Batch]:
        num_steps = self.trainer.max_steps - self.first_step
        parts = _Parts(self.stream, self._places[self.first_step], self.rows, num_steps)
        loader = DataLoader(
            parts,
            batch_size=None,
            collate_fn=_as_is,
            num_workers=self.num_workers,
            worker_init_fn=outlive_a_signal,
        )
        items = iter(loader)  # from the workers in turn
        for step in range(self.first_step, self.trainer.max_steps):
            step_parts: Part = {}
            for _ in range(max(1, self.num_workers)):
                step_parts |= _checked(next(items))
            self._remember(step + 1, {lane: place for lane, (_, place) in step_parts.items()})
            windows = torch.cat([step_parts[lane][0] for lane in sorted(step_parts)])
            if torch.cuda.is_available():
                windows = windows.pin_memory()
            for micro_batch in torch.split(windows, self.micro_batch_size):
                yield micro_batch[:, :-1], micro_batch[:, 1:]

    def places_after(self, step: int) -> list[Place]:
        """Where all lanes are after `step` optimizer steps, the present or a prepared one. All devices must ask."""
        places = self._places[step]
        if self.trainer.world_size > 1 and torch.distributed.is_initialized():
            gathered: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(gathered, places)
            places = {lane: place for part in gathered for lane, place in part.items()}
        return [places[lane] for lane in range(self.stream.num_lanes)]

    def _remember(self, step: int, places: dict[int, Place]) -> None:
        """Batches are prepared ahead of the steps that take them: keep the places since the last step taken."""
        self._places = {s: p for s, p in self._places.items() if s >= self.trainer.global_step} | {step: places}


def _first(documents: Sequence[tuple[Place, Ids]], begin: int, end: int) -> Ids:
    """Ids number `begin` to `end` - 1 of the documents in a row."""
    parts = []
    for _, ids in documents:
        parts.append(ids[max(0, begin) : end])
        begin, end = begin - len(ids), end - len(ids)
        if end <= 0:
            break
    return np.concatenate(parts)


def _checked(part: Part | Exception) -> Part:
    if isinstance(part, Exception):
        hint = "when that is mended, go on from the last checkpoint: the same command and --ckpt_path last"
        raise type(part)(f"{part}\n{hint}")
    return part


def _as_is(part: Any) -> Any:
    return part
