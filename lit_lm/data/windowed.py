"""WindowedData: the data of a run up to the windows of each step.

It needs neither torch nor Lightning, so that the commands that prepare and inspect data start at once.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from lit_lm.data.corpus import Corpus
from lit_lm.data.find_tokenizer import absolute_tokenizer
from lit_lm.data.ids import BinDtype
from lit_lm.data.option_problems import option_problems
from lit_lm.data.order import WindowOrder
from lit_lm.data.sources import Split
from lit_lm.data.token_store import TokenStore
from lit_lm.data.windows import Windows, WindowSchedule, share_out
from lit_lm.files import cache_folder
from lit_lm.model.config import TransformerConfig
from lit_lm.tokenizer.tokenizer import Tokenizer
from lit_lm.tokenizer.train import TokenizerType

if TYPE_CHECKING:
    from lit_lm.data.streaming import StreamingText


class WindowedData:
    """Sources, their token stores, and the windows that each step reads."""

    def __init__(
        self,
        source: dict[str, Any] | str = "stories",
        val_source: str | None = None,
        val_fraction: float = 0.05,
        val_tokens: int = 10_000_000,
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
            val_tokens: Maximum number of validation tokens to read: of more, windows at equal distances, always the
                same ones.
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
            num_streams: Number of shards read in parallel when streaming; at most this many processes (devices x
                workers) can share the reading. Another number gives another order of the text.
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
        if keep_options := getattr(self, "save_hyperparameters", None):  # of a LightningDataModule
            keep_options()
        self.val_fraction, self.val_tokens, self.batch_size = val_fraction, val_tokens, batch_size
        self.window_order = window_order
        self.streaming, self.shuffle_buffer, self.num_streams = streaming, shuffle_buffer, num_streams
        self.stride = 1 if window_order == "random" else context_length if stride is None else stride
        self.num_workers, self.seed = num_workers, seed
        self.context_length, self.vocab_size = context_length, vocab_size
        self._micro_batch_size = micro_batch_size
        problems = option_problems(
            source if isinstance(source, Mapping) and "class_path" not in source else {"": 1.0},
            val_fraction=val_fraction,
            val_tokens=val_tokens,
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
        self.expected_digests: dict[str, str] = {}
        """Digests of the tokens of each split in the run that is resumed."""

    @property
    def steps_per_epoch(self) -> Fraction | None:
        """Steps that read as many windows as there are; None: there are no epochs, or no data yet.

        Each window of a single source is then read once. A mixture's weights decide how often each of its is read.
        """
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

    def num_validated(self) -> list[int]:
        """Number of windows that a validation reads of each source."""
        return share_out(max(1, self.val_tokens // self.context_length), self.windows("validation").sizes)

    def open(self, splits: Sequence[Split] = ("train", "validation")) -> None:
        """Open the tokenizer and the token stores of some splits; those that are not cached are made first.

        Raises:
            ValueError, OSError: if a source cannot be read.
        """
        if self.tokenizer is None:
            self.tokenizer = self.corpus.tokenizer()
        self.stores = {
            split: {
                self.corpus.label(name): self.corpus.store(split, name, self.tokenizer)
                for name in self.corpus.splits[split]
            }
            for split in splits
        }
