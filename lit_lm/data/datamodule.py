"""LMDataModule: from a source to batches of token windows.

`batch_size` is the number of sequences per optimizer step over all devices, `micro_batch_size` the number per device
and forward pass. The data module sets the Trainer's gradient accumulation from the two. An integer
`val_check_interval` counts optimizer steps.
"""

import math
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from lit_lm.data.info import DataInfo, TextSize
from lit_lm.data.loader import Batch, TrainSampler, ValidationSampler, data_share, window_loader
from lit_lm.data.sources import TextSource
from lit_lm.data.streaming import StreamingLoader, StreamingText, fitting_num_streams, sharing_problem
from lit_lm.data.windowed import WindowedData
from lit_lm.data.windows import Windows, check_lengths
from lit_lm.tokenizer.tokenizer import Tokenizer


class LMDataModule(WindowedData, LightningDataModule):
    """Tokenizes sources once and provides batches of their windows. Its options are those of `WindowedData`."""

    _streaming_loader: StreamingLoader | None = None
    _set_up_for: Trainer | None = None

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
            held_out_of_stream = self.streaming and self.corpus.val_source is None  # a small part of a large text
            check_lengths(self.stores, self.context_length, whole_validation=held_out_of_stream)
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
        for store, num_read in zip(self.stores["validation"].values(), self.num_validated(), strict=True):
            windows = Windows([store], self.context_length, self.context_length, whole=False)
            sampler = ValidationSampler(
                self.trainer, num_windows=len(windows), num_read=num_read, micro_batch_size=self.micro_batch_size
            )
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
        return self._micro_batch_size or max(1, self.batch_size // self._devices)

    @property
    def accumulation(self) -> int:
        """Micro-batches per device and optimizer step."""
        return self.batch_size // (self.micro_batch_size * self._devices)

    @property
    def _devices(self) -> int:
        return 1 if self.trainer is None else data_share(self.trainer)[1]

    def _open(self) -> None:
        if self.tokenizer is None:
            self.tokenizer = self.corpus.tokenizer()
        fitting = self.trainer is None or self.trainer.state.fn in (None, TrainerFn.FITTING)
        if fitting and self.streaming:
            self.streaming_text = self._open_streams(self.tokenizer)
        self.open(("train", "validation") if fitting and not self.streaming else ("validation",))

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
        if "validation" in digests and (read := self.num_validated()) != self.windows("validation").sizes:
            digests["validation"] += f", {read} windows"
        if self.streaming_text is None:
            return digests
        source = self.streaming_text.source
        return digests | {"train": source.fingerprint, "streamed": source.content}

    def _set_up_steps(self, trainer: Trainer) -> None:
        if trainer is self._set_up_for:
            return
        self._set_up_for = trainer
        if self.batch_size % (self.micro_batch_size * self._devices):
            kind = "devices" if self._devices == trainer.world_size else "tensor-parallel groups"
            raise ValueError(
                f"batch_size {self.batch_size} is not divisible by "
                f"{self._devices} {kind} x micro_batch_size {self.micro_batch_size}"
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
        hint = sharing_problem(text.num_streams, self._devices, self.num_streams)
        if hint is not None and self.shuffle_buffer and trainer.is_global_zero:  # 0 means one stream
            print(hint, flush=True)
        self._streaming_loader = StreamingLoader(
            text,
            positions or text.beginning(),
            trainer,
            micro_batch_size=self.micro_batch_size,
            num_workers=self.num_workers,
        )
        return self._streaming_loader
