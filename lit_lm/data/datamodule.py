"""LMDataModule: from a source to batches of token windows.

`batch_size` is global: sequences per optimizer step over all devices. What one device takes at once is
`micro_batch_size`; the gradient accumulation that follows from the two is set on the Trainer, and its
`val_check_interval` counts optimizer steps here.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm

from lit_lm.data.order import window_at
from lit_lm.data.prompts import Prompt, PromptBatch, length_batches
from lit_lm.data.sources import IdSource, Source, Split, open_sources
from lit_lm.data.token_store import FORMAT, Chunk, TokenStore, open_or_write_store, tokenize
from lit_lm.data.windows import Batch, TrainOrder, ValidationOrder, Windows
from lit_lm.text.tokenizer import Tokenizer


class LMDataModule(LightningDataModule):
    """Tokenizes a source once and serves windows of it."""

    def __init__(
        self,
        source: str = "stories",
        val_source: str | None = None,
        val_fraction: float = 0.05,
        tokenizer: str | None = None,
        batch_size: int = 32,
        micro_batch_size: int | None = None,
        stride: int | None = None,
        num_workers: int = 0,
        text_field: str = "text",
        bin_dtype: Literal["uint16", "int32"] = "uint16",
        cache_dir: str = "~/.cache/lit-lm",
        context_length: int = 256,
        vocab_size: int = 10_000,
        seed: int = 0,
    ) -> None:
        """
        Args:
            source: stories (bundled), tinystories, hub:NAME, or a path or glob of .txt, .jsonl, .parquet, .npy, .bin.
            val_source: The same for validation; null: the source's own validation split, or else a held-out part.
            val_fraction: The part held out: of the documents; of the tail if there is only one.
            tokenizer: A tokenizer.json to use; null: train one of vocab_size tokens on the source.
            batch_size: Sequences per optimizer step, over all devices.
            micro_batch_size: Sequences that one device takes at once; null: its whole share of batch_size.
            stride: Tokens from the start of one training window to the next; null: context_length.
            num_workers: Processes that read windows; 0: the training process itself.
            text_field: Name of the text in .jsonl, .parquet and hub data sets.
            bin_dtype: Type of the ids in .bin files.
            cache_dir: Folder for tokenizers and token stores.
            context_length: Tokens per window (set by model.net.context_length).
            vocab_size: Size of the vocabulary (set by model.net.vocab_size).
            seed: Chooses the order of the windows (set by seed).

        Raises:
            ValueError: listing everything that is wrong with the values, a line each.
        """
        super().__init__()
        self.save_hyperparameters()
        self.source, self.val_source, self.val_fraction = source, val_source, val_fraction
        self.batch_size = batch_size
        self.stride = stride or context_length
        self.num_workers, self.seed = num_workers, seed
        self.text_field, self.bin_dtype = text_field, bin_dtype
        self.cache_dir = Path(cache_dir).expanduser()
        self.context_length, self.vocab_size = context_length, vocab_size
        self.tokenizer_path = tokenizer
        self._micro_batch_size = micro_batch_size
        if problems := self._problems():
            raise ValueError("\n".join(problems))
        self.tokenizer: Tokenizer | None = None
        """Set by `prepare_data`, or beforehand to use this one."""
        self.prompts: list[Prompt] = []
        """What `predict` continues."""
        self.prompt_batch_size = 1
        """Prompts that one device continues at once."""
        self.prompt_room: int | None = 1
        """Tokens that each prompt must leave free in the context; None: any length will do."""
        self.prompts_done = 0
        """The first prompts, which are continued already."""
        self.stores: dict[Split, TokenStore] = {}
        self.expected_digests: dict[str, str] = {}
        """Of the tokens that a run read which this one goes on with."""

    def _problems(self) -> list[str]:
        problems = []
        for name, value in [
            ("batch_size", self.batch_size),
            ("micro_batch_size", self._micro_batch_size),
            ("stride", self.stride),
        ]:
            if value is not None and value < 1:
                problems.append(f"{name} is {value}; it must be at least 1")
        if not problems and self._micro_batch_size and self.batch_size % self._micro_batch_size:
            problems.append(
                f"batch_size {self.batch_size} is not divisible by micro_batch_size {self._micro_batch_size}"
            )
        if self.num_workers < 0:
            problems.append(f"num_workers is {self.num_workers}; it must be at least 0")
        if not 0 < self.val_fraction <= 0.5:
            problems.append(f"val_fraction is {self.val_fraction}; it must be more than 0 and at most 0.5")
        return problems

    def prepare_data(self) -> None:
        """Train the tokenizer and write the token stores, where they are not in the cache yet."""
        self._open()

    def setup(self, stage: str) -> None:
        """Open what `prepare_data` made, and fit the Trainer's accumulation to the batch size.

        Raises:
            ValueError: if the batch size does not divide over the devices, or the data has not even one window.
        """
        self._open()
        if stage == TrainerFn.FITTING:
            self._check_windows()
            if self.trainer is not None:
                self._set_up_steps(self.trainer)

    def _open(self) -> None:
        if self.tokenizer is None and self.tokenizer_path is not None:
            self.tokenizer = Tokenizer.load(Path(self.tokenizer_path).expanduser())
        if self._trainer_fn() == TrainerFn.PREDICTING and self.tokenizer is not None:
            return
        fitting = self._trainer_fn() == TrainerFn.FITTING
        sources = open_sources(
            self.source,
            self.val_source,
            training=fitting or self.tokenizer is None,
            val_fraction=self.val_fraction,
            text_field=self.text_field,
            bin_dtype=self.bin_dtype,
        )
        if self.tokenizer is None:
            self.tokenizer = self._trained_tokenizer(sources["train"])
        if self.tokenizer.vocab_size > self.vocab_size:
            size = self.tokenizer.vocab_size
            raise ValueError(
                f"the tokenizer has {size} tokens but vocab_size is {self.vocab_size}; "
                f"set model.net.vocab_size to at least {size}"
            )
        splits: list[Split] = ["train", "validation"] if fitting else ["validation"]
        self.stores = {split: self._store(sources[split], split, self.tokenizer) for split in splits}

    def _trainer_fn(self) -> TrainerFn:
        return TrainerFn.FITTING if self.trainer is None else self.trainer.state.fn or TrainerFn.FITTING

    def _trained_tokenizer(self, source: Source) -> Tokenizer:
        if isinstance(source, IdSource):
            raise ValueError(f"{self.source} holds token ids; give the tokenizer they belong to by --data.tokenizer")
        name = _digest("tokenizer", source.fingerprint, str(self.vocab_size))
        path = self.cache_dir / "tokenizers" / f"{name}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):
                if not path.exists():
                    documents = _progress(source.documents(), "training the tokenizer", "documents")
                    text = Tokenizer.train(documents, self.vocab_size).to_json()
                    unfinished = path.with_suffix(".unfinished")
                    unfinished.write_text(text, encoding="utf-8")
                    unfinished.rename(path)
        return Tokenizer.load(path)

    def _store(self, source: Source, split: Split, tokenizer: Tokenizer) -> TokenStore:
        name = _digest("store", FORMAT, source.fingerprint, tokenizer.fingerprint)
        chunks = (
            _id_chunks(source, tokenizer) if isinstance(source, IdSource) else tokenize(source.documents(), tokenizer)
        )
        shown = _counted(chunks, f"tokenizing {split} data")
        try:
            return open_or_write_store(self.cache_dir / "stores" / name, shown, tokenizer.vocab_size)
        except ValueError as error:
            origin = self.val_source if split == "validation" and self.val_source else self.source
            raise ValueError(f"data.source {origin} ({split}): {error}") from None

    def _check_windows(self) -> None:
        for split, store in self.stores.items():
            needed = self.context_length + 1 if split == "train" else 2
            if len(store) < needed:
                raise ValueError(
                    f"the {split} data has {len(store)} tokens, fewer than one window of {needed}; "
                    "give more text or a smaller model.net.context_length"
                )
            if store.meta.sha256 != self.expected_digests.get(split, store.meta.sha256):
                raise ValueError(
                    f"the {split} data is not what it was when the checkpoint was written; "
                    "bring it back, or say --allow_changes true"
                )

    @property
    def world_size(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size

    @property
    def micro_batch_size(self) -> int:
        """Sequences that one device takes at once."""
        return self._micro_batch_size or max(1, self.batch_size // self.world_size)

    @property
    def accumulation(self) -> int:
        """Micro-batches of a device per optimizer step."""
        return self.batch_size // (self.micro_batch_size * self.world_size)

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes per token of the validation text."""
        return self.stores["validation"].meta.bytes_per_token

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.context_length

    def windows_of_step(self, step: int) -> list[int]:
        """The training windows of optimizer step number `step` (from 0), over all devices."""
        positions = step * self.batch_size + np.arange(self.batch_size)
        windows = window_at(positions, num_windows=len(self._windows("train")), seed=self.seed)
        return [int(window) for window in windows]

    def show(self, step: int) -> Iterator[str]:
        """The text of the training windows of step number `step` (from 1), a heading before each.

        Raises:
            ValueError: if there is no such step.
        """
        if step < 1:
            raise ValueError(f"step is {step}; the first one is 1")
        assert self.tokenizer is not None
        for window in self.windows_of_step(step - 1):
            start = window * self.stride
            ids = self.stores["train"].read(start, start + self.context_length + 1)
            yield f"--- step {step}, window {window}: tokens {start:,} to {start + self.context_length:,} ---"
            yield self.tokenizer.decode([int(i) for i in ids])

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data."""
        if self.tokenizer is None:
            return {}
        digests = {split: store.meta.sha256 for split, store in self.stores.items()}
        return {"tokenizer": self.tokenizer.to_json(), "digests": digests}

    def _set_up_steps(self, trainer: Trainer) -> None:
        if self.batch_size % (self.micro_batch_size * self.world_size):
            raise ValueError(
                f"batch_size {self.batch_size} does not divide over {self.world_size} devices"
                f" with a micro_batch_size of {self.micro_batch_size}"
            )
        if trainer.accumulate_grad_batches not in (1, self.accumulation):
            raise ValueError(
                f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}; leave it out: it follows from "
                f"data.batch_size {self.batch_size}, data.micro_batch_size {self.micro_batch_size} and the devices"
            )
        epochs = trainer.max_epochs
        if epochs is not None and epochs >= 0:  # a number of epochs is a number of steps
            steps = math.ceil(epochs * len(self._windows("train")) / self.batch_size)
            limit = trainer.max_steps if trainer.max_steps >= 0 else steps
            trainer.fit_loop.epoch_loop.max_steps = min(limit, steps)
        if trainer.accumulate_grad_batches != self.accumulation:
            trainer.accumulate_grad_batches = self.accumulation
            if isinstance(trainer.val_check_interval, int):
                trainer.val_check_interval *= self.accumulation

    def _windows(self, split: Split) -> Windows:
        stride = self.stride if split == "train" else self.context_length
        return Windows(self.stores[split], self.context_length, stride, whole=split == "train")

    def train_dataloader(self) -> DataLoader[Batch]:
        """Micro-batches of this device from the Trainer's present step on."""
        assert self.trainer is not None
        windows = self._windows("train")
        order = TrainOrder(
            self.trainer,
            num_windows=len(windows),
            batch_size=self.batch_size,
            micro_batch_size=self.micro_batch_size,
            seed=self.seed,
        )
        return self._loader(windows, order)

    def val_dataloader(self) -> DataLoader[Batch]:
        """This device's share of the validation windows, every token predicted once over all devices."""
        assert self.trainer is not None
        windows = self._windows("validation")
        order = ValidationOrder(self.trainer, num_windows=len(windows), micro_batch_size=self.micro_batch_size)
        return self._loader(windows, order)

    def test_dataloader(self) -> DataLoader[Batch]:
        """The validation windows."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[PromptBatch]:
        """This device's share of the prompts that are not done, in batches of about one length."""
        assert self.trainer is not None
        assert self.tokenizer is not None
        ids = [row or [self.tokenizer.end_id] for row in self.tokenizer.encode_batch([p.text for p in self.prompts])]
        for prompt, row in zip(self.prompts, ids, strict=True):
            room = self.context_length - len(row)
            if self.prompt_room is not None and room < self.prompt_room:
                raise ValueError(
                    f"{prompt.place}: a prompt of {len(row)} tokens and {self.prompt_room} new ones do not fit into "
                    f"the context of {self.context_length}; the prompt leaves room for {max(0, room)}"
                )
        world_size, size = self.world_size, self.prompt_batch_size
        batches = length_batches([len(row) for row in ids], self.prompts_done, size, world_size)
        share = [(numbers, [ids[n] for n in numbers]) for numbers in batches[self.trainer.global_rank :: world_size]]
        return DataLoader(share, batch_size=None, collate_fn=_as_is)  # type: ignore[arg-type]

    def _loader(self, windows: Windows, order: Sampler[list[int]]) -> DataLoader[Batch]:
        return DataLoader(
            windows,
            batch_sampler=order,
            collate_fn=_as_is,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )


def _as_is(batch: Any) -> Any:
    return batch


def _id_chunks(source: IdSource, tokenizer: Tokenizer) -> Iterator[Chunk]:
    for block in source.blocks():
        text = tokenizer.decode_batch([block.tolist()])[0]
        documents = int((block == tokenizer.end_id).sum())
        yield Chunk(block, documents, len(text.encode()) - documents * len(tokenizer.decode([tokenizer.end_id])))


def _progress(items: Iterable[str], what: str, unit: str) -> Iterator[str]:
    yield from tqdm(items, desc=what, unit=f" {unit}", unit_scale=True, leave=False, disable=None)


def _counted(chunks: Iterable[Chunk], what: str) -> Iterator[Chunk]:
    with tqdm(desc=what, unit=" tokens", unit_scale=True, leave=False, disable=None) as bar:
        for chunk in chunks:
            yield chunk
            bar.update(len(chunk.ids))


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
