"""LMDataModule: from a source to batches of token windows.

`batch_size` is the number of sequences per optimizer step over all devices, `micro_batch_size` the number per device
and forward pass. The data module sets the Trainer's gradient accumulation from the two. An integer
`val_check_interval` counts optimizer steps.
"""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from lit_lm.data.corpus import Corpus
from lit_lm.data.find_tokenizer import absolute_tokenizer
from lit_lm.data.ids import BinDtype
from lit_lm.data.info import DataInfo, TextSize
from lit_lm.data.option_problems import option_problems
from lit_lm.data.order import WindowOrder
from lit_lm.data.sources import Split, TextSource
from lit_lm.data.streaming import StreamingLoader, StreamingText, fitting_num_streams
from lit_lm.data.token_store import TokenStore
from lit_lm.data.windows import (
    Batch,
    TrainSampler,
    ValidationSampler,
    Windows,
    WindowSchedule,
    check_lengths,
    window_loader,
)
from lit_lm.files import cache_folder
from lit_lm.model.config import TransformerConfig
from lit_lm.tokenizer.tokenizer import Tokenizer
from lit_lm.tokenizer.train import TokenizerType


class LMDataModule(LightningDataModule):
    """Tokenizes sources once and provides batches of their windows."""

    def __init__(
        self,
        source: dict[str, Any] | str = "stories",
        val_source: str | None = None,
        val_fraction: float = 0.05,
        tokenizer: str | None = None,
        tokenizer_type: TokenizerType = "bpe",
        special_tokens: list[str] | None = None,
        batch_size: int = 32,
        micro_batch_size: int | None = None,
        stride: int | None = None,
        window_order: WindowOrder = "shuffled",
        num_workers: int = 0,
        streaming: bool = False,
        shuffle_buffer: int = 1000,
        num_streams: int = 8,
        text_field: str = "text",
        bin_dtype: BinDtype = "uint16",
        cache_dir: str | None = None,
        context_length: int = TransformerConfig.context_length,
        vocab_size: int = TransformerConfig.vocab_size,
        seed: int = 0,
    ) -> None:
        """
        Args:
            source: stories or stories-zh (bundled), tinystories, hub:NAME or hub:NAME:CONFIG, or a path, URL, glob or
                folder of .txt, .jsonl, .parquet, .npy or .bin files; a mapping from such sources to weights; or the
                class_path of an iterable of documents.
            val_source: Source of the validation data; null: the source's own validation split, or a held-out part.
            val_fraction: Fraction held out for validation: every k-th document (k = round(1 / val_fraction)), or the
                end of a single document.
            tokenizer: Tokenizer to use (tokenizer.json, .model, .tiktoken, a folder with GPT-2's vocab.json and
                merges.txt, the two files separated by a comma, hub:NAME, or gpt2); null: train one of vocab_size tokens
                on the source.
            tokenizer_type: Type of tokenizer to train: bpe (byte-level), unigram (as in SentencePiece) or char.
            special_tokens: Markup in the text, such as <|user|>, that is one token each in the tokenizer to train.
            batch_size: Sequences per optimizer step, over all devices.
            micro_batch_size: Sequences per device and forward pass; null: the device's whole share of batch_size.
            stride: Tokens from the start of one training window to the next; null: context_length.
            window_order: shuffled: each window once per epoch; random: windows at random offsets; sequential: in order.
            num_workers: Processes that read windows, or tokenize when streaming; 0: the training process itself.
            streaming: Tokenize during training, without a token store; for text that does not fit on disk.
            shuffle_buffer: Number of documents that a stream shuffles at a time; 0: keep the order of the source.
            num_streams: Number of shards read in parallel when streaming; also the maximum of devices x workers that
                can share the reading.
            text_field: Name of the text field in .jsonl, .parquet and hub datasets.
            bin_dtype: Data type of the ids in .bin files without a header.
            cache_dir: Folder of tokenizers and token stores; null: $XDG_CACHE_HOME/lit-lm or ~/.cache/lit-lm.
            context_length: Tokens per window (set by model.net.context_length).
            vocab_size: Size of the vocabulary (set by model.net.vocab_size).
            seed: Seed of the window order (set by --seed).

        Raises:
            ValueError: if values are invalid; lists all problems, one per line.
        """
        super().__init__()
        tokenizer = None if tokenizer is None else absolute_tokenizer(str(tokenizer))  # as the command line stores it
        self.save_hyperparameters()
        self.val_fraction, self.batch_size = val_fraction, batch_size
        self.window_order = window_order
        self.streaming, self.shuffle_buffer, self.num_streams = streaming, shuffle_buffer, num_streams
        self.stride = 1 if window_order == "random" else context_length if stride is None else stride
        self.num_workers, self.seed = num_workers, seed
        self.context_length, self.vocab_size = context_length, vocab_size
        self._micro_batch_size = micro_batch_size
        problems = option_problems(
            source if isinstance(source, Mapping) and "class_path" not in source else {"": 1.0},
            val_fraction=val_fraction,
            tokenizer=tokenizer,
            special_tokens=special_tokens or (),
            batch_size=batch_size,
            micro_batch_size=micro_batch_size,
            context_length=context_length,
            stride=stride,
            window_order=window_order,
            num_workers=num_workers,
            streaming=streaming,
            shuffle_buffer=shuffle_buffer,
            num_streams=num_streams,
        )
        if problems:
            raise ValueError("\n".join(problems))
        self.corpus = Corpus(
            source,
            val_source,
            val_fraction=val_fraction,
            text_field=text_field,
            bin_dtype=bin_dtype,
            tokenizer=tokenizer,
            tokenizer_type=tokenizer_type,
            special_tokens=special_tokens or (),
            vocab_size=vocab_size,
            cache_dir=cache_folder(cache_dir),
            streaming=streaming,
        )
        self.tokenizer: Tokenizer | None = None
        """Set by `prepare_data`, unless set before."""
        self.stores: dict[Split, dict[str, TokenStore]] = {}
        """Stores of each split, by the label of their source."""
        self.streaming_text: StreamingText | None = None
        self.streaming_state: dict[str, Any] | None = None
        """Where streams resume: `step`, the `positions` of the streams after it, and the text's `identity`."""
        self._streaming_loader: StreamingLoader | None = None
        self._set_up_for: Trainer | None = None
        self.expected_digests: dict[str, str] = {}
        """Digests of the tokens of each split in the run that is resumed."""

    @property
    def data_info(self) -> DataInfo:
        """Facts about the data that training uses; complete after `setup`."""
        description = f"{self.batch_size} x {self.context_length}"
        if self.accumulation > 1:
            description += f", in {self.accumulation} micro-batches of {self.micro_batch_size}"
        metas = {name: store.meta for name, store in self.stores.get("validation", {}).items()}
        return DataInfo(
            tokens_per_step=self.batch_size * self.context_length,
            steps_per_epoch=self.steps_per_epoch,
            context_length=self.context_length,
            batch_description=description,
            tokenizer=self.tokenizer,
            validation={name: TextSize(meta.tokens, meta.bytes, meta.characters) for name, meta in metas.items()},
            windows_of_step=self.windows_of_step,
            starts_at_step=True,
        )

    def prepare_data(self) -> None:
        """Train the tokenizer and write the token stores, unless they are cached."""
        self._open()

    def setup(self, stage: str) -> None:
        """Open the tokenizer and the token stores, and set the Trainer's accumulation from the batch size.

        Raises:
            ValueError: if the devices cannot share the batch size equally, or a source is shorter than one window.
        """
        self._open()
        if stage == TrainerFn.FITTING:
            check_lengths(self.stores, self.context_length, held_out=self.streaming and self.corpus.val_source is None)
            self._check_digests()
            if self.trainer is not None:
                self._set_up_steps(self.trainer)

    def train_dataloader(self) -> DataLoader[Batch] | StreamingLoader:
        """Micro-batches of this device, from the Trainer's current step on."""
        assert self.trainer is not None
        if self.streaming_text is not None:
            return self._load_streams(self.streaming_text, self.trainer)
        sampler = TrainSampler(self.trainer, self.window_schedule, micro_batch_size=self.micro_batch_size)
        return window_loader(self.windows("train"), sampler, self.num_workers)

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """One loader per source with this device's share of the windows; the devices predict each token once."""
        assert self.trainer is not None
        loaders = []
        for store in self.stores["validation"].values():
            windows = Windows([store], self.context_length, self.context_length, whole=False)
            sampler = ValidationSampler(self.trainer, num_windows=len(windows), micro_batch_size=self.micro_batch_size)
            loaders.append(window_loader(windows, sampler, self.num_workers))
        return loaders

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        """The validation windows."""
        return self.val_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """State of the data for a checkpoint."""
        if self.tokenizer is None:
            return {}
        state: dict[str, Any] = {"digests": self._digests()}
        if self._streaming_loader is not None:
            step = self._streaming_loader.trainer.global_step
            positions = [list(position) for position in self._streaming_loader.positions_after(step)]
            identity = self._streaming_loader.text.identity
            state["streaming"] = {"step": step, "positions": positions, "identity": identity}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the positions of the streams; everything else follows from the step."""
        self.streaming_state = state_dict.get("streaming")

    @property
    def micro_batch_size(self) -> int:
        """Sequences per device and forward pass."""
        return self._micro_batch_size or max(1, self.batch_size // self._world_size)

    @property
    def accumulation(self) -> int:
        """Micro-batches per device and optimizer step."""
        return self.batch_size // (self.micro_batch_size * self._world_size)

    @property
    def steps_per_epoch(self) -> Fraction | None:
        """Steps after which every training window has been read once; None: there are no epochs, or no data yet."""
        if self.streaming or self.window_order == "random" or "train" not in self.stores:
            return None
        return Fraction(len(self.windows("train")), self.batch_size)

    @property
    def window_schedule(self) -> WindowSchedule:
        """The training windows of every step.

        Raises:
            ValueError: when streaming, where the order of the windows is not known in advance.
        """
        if self.streaming:
            raise ValueError("a streamed source has no window schedule: windows are cut as the text is read")
        sizes = tuple(self.windows("train").sizes)
        return WindowSchedule(sizes, self.corpus.weights, self.batch_size, self.seed, self.window_order)

    def windows_of_step(self, step: int) -> list[int]:
        """Windows of optimizer step `step` (from 1), over all devices; numbered in reading order when streaming."""
        if self.streaming:
            return list(range((step - 1) * self.batch_size, step * self.batch_size))
        return self.window_schedule.step(step)

    def windows(self, split: Split) -> Windows:
        """Windows of all sources of a split."""
        train = split == "train"
        stores = list(self.stores[split].values())
        return Windows(stores, self.context_length, self.stride if train else self.context_length, whole=train)

    @property
    def _world_size(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size

    def _open(self) -> None:
        if self.tokenizer is None:
            self.tokenizer = self.corpus.tokenizer()
        fitting = self.trainer is None or self.trainer.state.fn in (None, TrainerFn.FITTING)
        splits: list[Split] = ["validation"]
        if fitting and self.streaming:
            self.streaming_text = self._open_streams(self.tokenizer)
        elif fitting:
            splits = ["train", "validation"]
        self.stores = {
            split: {
                self.corpus.label(name): self.corpus.store(split, name, self.tokenizer)
                for name in self.corpus.splits[split]
            }
            for split in splits
        }

    def _check_digests(self) -> None:
        for which, digest in self._digests().items():
            if digest != self.expected_digests.get(which, digest):
                raise ValueError(
                    f"the {which} data has changed since the checkpoint was written; "
                    "restore it, or pass --allow_changes true"
                )

    def _digests(self) -> dict[str, str]:
        digests: dict[str, str] = {
            split: " ".join(store.meta.sha256 for store in stores.values()) for split, stores in self.stores.items()
        }
        if self.streaming_text is None:
            return digests
        source = self.streaming_text.source
        return digests | {"train": source.fingerprint, "streamed": source.content}

    def _set_up_steps(self, trainer: Trainer) -> None:
        if trainer is self._set_up_for:
            return
        self._set_up_for = trainer
        if self.batch_size % (self.micro_batch_size * self._world_size):
            raise ValueError(
                f"batch_size {self.batch_size} is not divisible by "
                f"{self._world_size} devices x micro_batch_size {self.micro_batch_size}"
            )
        if trainer.accumulate_grad_batches not in (1, self.accumulation):
            raise ValueError(
                f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}; leave it out: it follows from "
                f"data.batch_size {self.batch_size}, data.micro_batch_size {self.micro_batch_size} and the devices"
            )
        epochs = trainer.max_epochs
        if epochs is not None and epochs >= 0:
            if self.steps_per_epoch is None:
                kind = "streaming" if self.streaming else "window_order random"
                raise ValueError(f"trainer.max_epochs is {epochs}, but {kind} has no epochs: use trainer.max_steps")
            steps = math.ceil(epochs * self.steps_per_epoch)
            limit = trainer.max_steps if trainer.max_steps >= 0 else steps
            trainer.fit_loop.epoch_loop.max_steps = min(limit, steps)
        trainer.accumulate_grad_batches = self.accumulation
        if isinstance(trainer.val_check_interval, int):  # Lightning counts micro-batches
            trainer.val_check_interval *= self.accumulation

    def _open_streams(self, tokenizer: Tokenizer) -> StreamingText:
        (source,) = self.corpus.sources["train"].values()
        if not isinstance(source, TextSource):
            raise ValueError(f"data.source {self.corpus.names[0]} contains token ids, not text; leave out streaming")
        streams = fitting_num_streams(
            self.num_streams, len(source.shards), batch_size=self.batch_size, shuffle_buffer=self.shuffle_buffer
        )
        context, batch = self.context_length, self.batch_size
        return StreamingText(source, tokenizer, context, batch, streams, self.shuffle_buffer, self.seed)

    def _load_streams(self, text: StreamingText, trainer: Trainer) -> StreamingLoader:
        positions = text.positions(self.streaming_state)
        if positions is None and trainer.global_step and trainer.is_global_zero:
            print("the data differs from the checkpoint's: streaming starts from the beginning", flush=True)
        self._streaming_loader = StreamingLoader(
            text,
            positions or text.beginning(),
            trainer,
            micro_batch_size=self.micro_batch_size,
            num_workers=self.num_workers,
        )
        return self._streaming_loader
