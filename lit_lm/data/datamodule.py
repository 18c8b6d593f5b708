"""LMDataModule: from a source to batches of token windows.

`batch_size` is global: sequences per optimizer step over all devices. What one device takes at once is
`micro_batch_size`; the gradient accumulation that follows from the two is set on the Trainer, and its
`val_check_interval` counts optimizer steps here.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from lit_lm.data.corpus import Corpus
from lit_lm.data.order import NUM_TURNS, Sampling
from lit_lm.data.sources import Split, TextSource
from lit_lm.data.streaming import StreamBatches, TextStream, lanes_for
from lit_lm.data.token_store import TokenStore
from lit_lm.data.windows import Batch, Stream, TrainOrder, ValidationOrder, Windows, outlive_a_signal
from lit_lm.inference.prompts import Prompt, PromptBatch, length_batches, prompt_ids
from lit_lm.tokenizer.tokenizer import Tokenizer
from lit_lm.tokenizer.train import Kind


class LMDataModule(LightningDataModule):
    """Tokenizes a source once and serves windows of it."""

    def __init__(
        self,
        source: dict[str, float] | str = "stories",
        val_source: str | None = None,
        val_fraction: float = 0.05,
        tokenizer: str | None = None,
        tokenizer_type: Kind = "bpe",
        batch_size: int = 32,
        micro_batch_size: int | None = None,
        stride: int | None = None,
        sampling: Sampling = "shuffled",
        num_workers: int = 0,
        streaming: bool = False,
        shuffle_buffer: int = 1000,
        lanes: int = 8,
        text_field: str = "text",
        bin_dtype: Literal["uint16", "int32"] = "uint16",
        cache_dir: str = "~/.cache/lit-lm",
        context_length: int = 256,
        vocab_size: int = 10_000,
        seed: int = 0,
    ) -> None:
        """
        Args:
            source: stories or stories-zh (bundled), tinystories, hub:NAME, or a path, address or glob of .txt, .jsonl,
                .parquet, .npy or .bin; or several, each with its weight.
            val_source: The same for validation; null: the source's own validation split, or else a held-out part.
            val_fraction: The part held out: every k-th document, k the nearest to 1 / val_fraction; of one, the tail.
            tokenizer: A tokenizer to use (tokenizer.json, a folder of GPT-2's form, .model, .tiktoken); null: train one
                of vocab_size tokens on the source.
            tokenizer_type: The kind, if one is trained: bpe (on bytes), unigram (SentencePiece's), char.
            batch_size: Sequences per optimizer step, over all devices.
            micro_batch_size: Sequences that one device takes at once; null: its whole share of batch_size.
            stride: Tokens from the start of one training window to the next; null: context_length.
            sampling: shuffled: each window once an epoch; random: windows at random offsets; sequential: in order.
            num_workers: Processes that read windows, or tokenize a stream; 0: the training process itself.
            streaming: Tokenize while training, without a token store; what does not fit on a disk is read like this.
            shuffle_buffer: Documents of a stream that are shuffled at a time; 0: read in the order of the source.
            lanes: Places at which a stream is read at once: as many devices and workers can share the work.
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
        self.val_fraction, self.batch_size = val_fraction, batch_size
        self.sampling = sampling
        self.streaming, self.shuffle_buffer, self.lanes = streaming, shuffle_buffer, lanes
        self.stride = 1 if sampling == "random" else stride or context_length
        self.num_workers, self.seed = num_workers, seed
        self.context_length, self.vocab_size = context_length, vocab_size
        self._micro_batch_size = micro_batch_size
        self.sources = dict(source) if isinstance(source, Mapping) else {source: 1.0}
        if problems := self._problems(stride):
            raise ValueError("\n".join(problems))
        self.corpus = Corpus(
            self.sources,
            val_source,
            val_fraction=val_fraction,
            text_field=text_field,
            bin_dtype=bin_dtype,
            tokenizer=tokenizer,
            tokenizer_type=tokenizer_type,
            vocab_size=vocab_size,
            cache_dir=Path(cache_dir).expanduser(),
            streaming=streaming,
        )
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
        self.stores: dict[Split, dict[str, TokenStore]] = {}
        """Of each split, by the label of the source."""
        self.text_stream: TextStream | None = None
        self.stream_state: dict[str, Any] | None = None
        """Where a stream is that goes on: `step`, and the `places` of its lanes after that step."""
        self._stream_batches: StreamBatches | None = None
        self.expected_digests: dict[str, str] = {}
        """Of the tokens that a run read which this one goes on with."""

    def _problems(self, stride: int | None) -> list[str]:
        problems = []
        for name, value in [
            ("batch_size", self.batch_size),
            ("micro_batch_size", self._micro_batch_size),
            ("stride", self.stride),
            ("lanes", self.lanes),
        ]:
            if value is not None and value < 1:
                problems.append(f"{name} is {value}; it must be at least 1")
        if not problems and self._micro_batch_size and self.batch_size % self._micro_batch_size:
            problems.append(
                f"batch_size {self.batch_size} is not divisible by micro_batch_size {self._micro_batch_size}"
            )
        for name, value in [("num_workers", self.num_workers), ("shuffle_buffer", self.shuffle_buffer)]:
            if value < 0:
                problems.append(f"{name} is {value}; it must be at least 0")
        if not 0 < self.val_fraction <= 0.5:
            problems.append(f"val_fraction is {self.val_fraction}; it must be more than 0 and at most 0.5")
        if self.sampling == "random" and stride is not None:
            problems.append(f"stride is {stride}, but sampling random has none; leave it out")
        if self.streaming and (self.stride != self.context_length or self.sampling != "shuffled"):
            problems.append(
                f"sampling is {self.sampling} and stride {self.stride}, but the windows of a stream come as they are "
                "read; leave both out (shuffle_buffer 0 keeps the order of the source)"
            )
        if self.streaming and len(self.sources) > 1:
            problems.append(f"source names {len(self.sources)} sources, but a stream has one; leave out streaming")
        total = sum(self.sources.values())
        for name, weight in self.sources.items():
            if not (math.isfinite(weight) and weight > 0):
                problems.append(f"the weight of {name} is {weight}; it must be more than 0")
            elif weight * NUM_TURNS < total:
                problems.append(f"the weight of {name} is {weight}; it must be at least 1/{NUM_TURNS} of all")
        if not self.sources:
            problems.append("source names nothing; give at least one source")
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
        fn = self._trainer_fn()
        if self.tokenizer is None:
            self.tokenizer = self.corpus.tokenizer()
        elif fn == TrainerFn.PREDICTING:
            return
        splits: list[Split] = ["validation"]
        if fn == TrainerFn.FITTING and self.streaming:
            self.text_stream = self._open_stream(self.tokenizer)
        elif fn == TrainerFn.FITTING:
            splits = ["train", "validation"]
        self.stores = {
            split: {
                self.corpus.label(name): self.corpus.store(split, name, self.tokenizer)
                for name in self.corpus.splits[split]
            }
            for split in splits
        }

    def _trainer_fn(self) -> TrainerFn:
        return TrainerFn.FITTING if self.trainer is None else self.trainer.state.fn or TrainerFn.FITTING

    def _check_windows(self) -> None:
        for split, stores in self.stores.items():
            needed = self.context_length + 1 if split == "train" else 2
            for name, store in stores.items():
                if len(store) < needed:
                    raise ValueError(
                        f"the {split} data of {name} has {len(store)} tokens, fewer than one window of {needed}; "
                        "give more text or a smaller model.net.context_length"
                    )
        for which, digest in self._digests().items():
            if digest != self.expected_digests.get(which, digest):
                raise ValueError(
                    f"the {which} data is not what it was when the checkpoint was written; "
                    "bring it back, or say --allow_changes true"
                )

    def _digests(self) -> dict[str, str]:
        digests: dict[str, str] = {
            split: " ".join(store.meta.sha256 for store in stores.values()) for split, stores in self.stores.items()
        }
        return digests if self.text_stream is None else digests | {"train": self.text_stream.source.fingerprint}

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
    def tokens_per_step(self) -> int:
        return self.batch_size * self.context_length

    @property
    def stream(self) -> Stream:
        """The training windows of every step."""
        sizes = tuple(self.windows("train").sizes)
        return Stream(sizes, self.corpus.weights, self.batch_size, self.seed, self.sampling)

    def windows_of_step(self, step: int) -> list[int]:
        """The windows of optimizer step number `step` (from 0), over all devices; a stream's as they come."""
        if self.streaming:
            return list(range(step * self.batch_size, (step + 1) * self.batch_size))
        return self.stream.step(step)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data."""
        if self.tokenizer is None:
            return {}
        state: dict[str, Any] = {"digests": self._digests()}
        if self._stream_batches is not None:
            step = self._stream_batches.trainer.global_step
            places = [list(place) for place in self._stream_batches.places_after(step)]
            state["stream"] = {"step": step, "places": places, "of": self._stream_batches.stream.identity}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Have a stream go on where it was; all else follows from the step."""
        self.stream_state = state_dict.get("stream")

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
        if epochs is not None and epochs >= 0 and (self.streaming or self.sampling == "random"):
            kind = "a stream" if self.streaming else "sampling random"
            raise ValueError(f"trainer.max_epochs is {epochs}, but {kind} has no epochs: use trainer.max_steps")
        if epochs is not None and epochs >= 0:  # a number of epochs is a number of steps
            steps = math.ceil(epochs * len(self.windows("train")) / self.batch_size)
            limit = trainer.max_steps if trainer.max_steps >= 0 else steps
            trainer.fit_loop.epoch_loop.max_steps = min(limit, steps)
        if trainer.accumulate_grad_batches != self.accumulation:
            trainer.accumulate_grad_batches = self.accumulation
            if isinstance(trainer.val_check_interval, int):
                trainer.val_check_interval *= self.accumulation

    def windows(self, split: Split) -> Windows:
        """The windows of all sources of a split."""
        train = split == "train"
        stores = list(self.stores[split].values())
        return Windows(stores, self.context_length, self.stride if train else self.context_length, whole=train)

    def _open_stream(self, tokenizer: Tokenizer) -> TextStream:
        (source,) = self.corpus.sources["train"].values()
        if not isinstance(source, TextSource):
            raise ValueError(f"data.source {self.corpus.names[0]} holds token ids, not text; leave out streaming")
        num_lanes = lanes_for(
            self.lanes, num_units=len(source.units), batch_size=self.batch_size, shuffle_buffer=self.shuffle_buffer
        )
        return TextStream(
            source, tokenizer, self.context_length, self.batch_size, num_lanes, self.shuffle_buffer, self.seed
        )

    def _stream_loader(self, stream: TextStream, trainer: Trainer) -> StreamBatches:
        places = stream.places(self.stream_state)
        if places is None and trainer.global_step and trainer.is_global_zero:
            print("the data is another than the checkpoint's, so the stream is read from its beginning", flush=True)
        self._stream_batches = StreamBatches(
            stream,
            places or stream.beginning(),
            trainer,
            micro_batch_size=self.micro_batch_size,
            num_workers=self.num_workers,
        )
        return self._stream_batches

    def train_dataloader(self) -> DataLoader[Batch] | StreamBatches:
        """Micro-batches of this device from the Trainer's present step on."""
        assert self.trainer is not None
        if self.text_stream is not None:
            return self._stream_loader(self.text_stream, self.trainer)
        order = TrainOrder(self.trainer, self.stream, micro_batch_size=self.micro_batch_size)
        return self._loader(self.windows("train"), order)

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """For each source, this device's share of its validation windows: every token once over all devices."""
        assert self.trainer is not None
        loaders = []
        for store in self.stores["validation"].values():
            windows = Windows([store], self.context_length, self.context_length, whole=False)
            order = ValidationOrder(self.trainer, num_windows=len(windows), micro_batch_size=self.micro_batch_size)
            loaders.append(self._loader(windows, order))
        return loaders

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        """The validation windows."""
        return self.val_dataloader()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Tensors to the device, without waiting for them; prompts stay as they are."""
        return [part.to(device, non_blocking=True) if isinstance(part, Tensor) else part for part in batch]

    def predict_dataloader(self) -> DataLoader[PromptBatch]:
        """This device's share of the prompts that are not done, in batches of about one length."""
        assert self.trainer is not None
        assert self.tokenizer is not None
        ids = prompt_ids(self.prompts, self.tokenizer, self.context_length, self.prompt_room)
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
            worker_init_fn=outlive_a_signal,
            pin_memory=torch.cuda.is_available(),
        )


def _as_is(batch: Any) -> Any:
    return batch
