"""A trained model with its tokenizer: generate text, score text, and look at probabilities and attention.

Shapes: T tokens, V vocabulary, L layers, H query heads.
"""

from collections.abc import Generator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from lit_lm.checkpoint import read_checkpoint
from lit_lm.inference.batch import check_tokens
from lit_lm.inference.chat import chat_ids
from lit_lm.inference.engine import make_engine
from lit_lm.inference.sampling import SamplingConfig
from lit_lm.inference.text import Piece, Text, TextGenerator, encode_prompt
from lit_lm.inference.weights import WeightDtype
from lit_lm.model.config import TransformerConfig
from lit_lm.model.losses import bits_per_byte, perplexity
from lit_lm.model.transformer import Transformer
from lit_lm.runs import find_checkpoint
from lit_lm.tokenizer.tokenizer import Tokenizer


class LanguageModel:
    """A Transformer with its tokenizer, for use from Python. `lit_lm.load` returns one."""

    def __init__(
        self,
        transformer: Transformer,
        tokenizer: Tokenizer,
        *,
        weight_dtype: WeightDtype | None = None,
        path: Path | None = None,
        chat_template: str | None = None,
    ) -> None:
        """
        Args:
            transformer: The model, on any device.
            tokenizer: Its tokenizer.
            weight_dtype: Data type of the matrices for generation; None: that of the model.
            path: Checkpoint that it was loaded from.
            chat_template: Template in Jinja for chats; None if the model is not for chats.
        """
        self.transformer, self.tokenizer = transformer.eval(), tokenizer
        self.weight_dtype, self.path, self.chat_template = weight_dtype, path, chat_template

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.transformer.parameters())
        return f"<LanguageModel of {count:,} parameters from {self.path}>"

    @property
    def config(self) -> TransformerConfig:
        """Shape of the Transformer."""
        return self.transformer.config

    @cached_property
    def generator(self) -> TextGenerator:
        """Generates with a copy of the weights that is made at first use: later changes to them have no effect."""
        return TextGenerator(self.tokenizer, make_engine(self.transformer, self.weight_dtype))

    def generate(self, prompt: str = "", *, seed: int = 0, stop: Sequence[str] = (), **sampling: Any) -> Text:
        """Continue a prompt, as `lit-lm generate` does with the same seed.

        `str()` of the result is the prompt and its continuation.

        Args:
            prompt: Text to continue; empty: begin a new text.
            seed: Seed of the continuation.
            stop: Stop strings; the text ends before the first one.
            sampling: Fields of `SamplingConfig`: max_new_tokens, temperature, top_k, top_p, ...

        Raises:
            TypeError: if a field is unknown.
            ValueError: if a value is invalid, or the prompt does not fit into the context.
        """
        return self.samples(prompt, 1, seed=seed, stop=stop, **sampling)[0]

    def samples(
        self, prompt: str = "", num_samples: int = 1, *, seed: int = 0, stop: Sequence[str] = (), **sampling: Any
    ) -> list[Text]:
        """Continue a prompt `num_samples` times, in one batch. The first one is that of `generate`.

        Args and errors are those of `generate`.
        """
        config = SamplingConfig(num_samples=num_samples, **sampling)
        return self.generator.generate(prompt, config, seed=seed, stop=stop)

    def stream(
        self,
        prompt: str = "",
        *,
        seed: int = 0,
        stop: Sequence[str] = (),
        num_alternatives: int = 0,
        **sampling: Any,
    ) -> Generator[Piece, None, None]:
        """Yield the continuation of `generate` piece by piece, as it is generated.

        A piece has a `text`, a `probability`, and `tokens` with their `alternatives`. Args and errors are those of
        `generate`.

        Args:
            num_alternatives: Number of likeliest tokens to include with each token.
        """
        text = Text(prompt, seed)
        return self.generator.stream(text, SamplingConfig(**sampling), stop=stop, num_alternatives=num_alternatives)

    def chat(
        self, messages: Sequence[Mapping[str, str]], *, seed: int = 0, stop: Sequence[str] = (), **sampling: Any
    ) -> str:
        """Answer the last message of a chat.

        Args:
            messages: Each has a `role`, such as user or assistant, and a `content`.
            seed: As for `generate`.
            stop: As for `generate`.
            sampling: As for `generate`.

        Raises:
            TypeError: if a field is unknown.
            ValueError: if the model has no chat template, or the messages or a value are invalid.
        """
        ids = chat_ids(self.tokenizer, self.chat_template, messages)
        return self.generator.continue_ids(ids, SamplingConfig(**sampling), seed=seed, stop=stop)[0].continuation

    def logits(self, text: str) -> Tensor:
        """Logits (T, V) in float32 for the token after each token of a text.

        Raises:
            ValueError: if the text is empty, or has more tokens than the context.
        """
        return self._forward(self._fitting_ids(text))

    def log_probabilities(self, text: str) -> Tensor:
        """Natural logarithm (T) of the probability of each token of a text, given those before it.

        The first token follows the end-of-text token. A text longer than the context is divided into windows without
        overlap, as in validation.

        Raises:
            ValueError: if the text is empty.
        """
        context = self.config.context_length
        ids = [self.tokenizer.end_id, *self._ids(text)]
        windows = [ids[start : start + context + 1] for start in range(0, len(ids) - 1, context)]
        return torch.cat([self._score(window) for window in windows])

    def perplexity(self, text: str) -> float:
        """exp of the mean loss per token; tokenizers are comparable only by `bits_per_byte`.

        Raises:
            ValueError: if the text is empty.
        """
        return perplexity(self._loss(text))

    def bits_per_byte(self, text: str) -> float:
        """Bits needed to encode a byte of the text in UTF-8.

        Raises:
            ValueError: if the text is empty.
        """
        return bits_per_byte(self._loss(text), len(text.encode()) / len(self._ids(text)))

    def attention(self, text: str) -> Tensor:
        """Attention weights (L, H, T, T): row t of a head is how much token t attends to each token up to itself.

        Raises:
            ValueError: if the text is empty, or has more tokens than the context.
        """
        with _AttentionWeights() as mode:
            self._forward(self._fitting_ids(text))
        return torch.cat(mode.weights).cpu()

    def attention_of_last(self, ids: Sequence[int]) -> Tensor:
        """Attention weights (L, H, T) of the last of some token ids.

        Raises:
            ValueError: if there are more ids than the context has room for, or one is not in the vocabulary.
        """
        check_tokens("ids", ids, self.config)
        if len(ids) > self.config.context_length:
            raise ValueError(f"there are {len(ids)} tokens, but the context has {self.config.context_length}")
        with _AttentionWeights(rows=slice(-1, None)) as mode:
            self._forward(ids)
        return torch.cat(mode.weights).squeeze(2).cpu()

    def _ids(self, text: str) -> list[int]:
        if not text:
            raise ValueError("the text is empty")
        return encode_prompt(self.tokenizer, text)

    def _fitting_ids(self, text: str) -> list[int]:
        ids = self._ids(text)
        if len(ids) > self.config.context_length:
            raise ValueError(f"the text has {len(ids)} tokens, but the context only {self.config.context_length}")
        return ids

    @torch.inference_mode()
    def _forward(self, ids: Sequence[int]) -> Tensor:
        device = self.transformer.head.weight.device
        batch = torch.tensor([list(ids)], dtype=torch.long, device=device)
        return self.transformer(batch)[0].float().cpu()  # type: ignore[no-any-return]

    def _score(self, window: Sequence[int]) -> Tensor:
        log_probabilities = self._forward(window[:-1]).log_softmax(dim=-1)
        return log_probabilities.gather(1, torch.tensor(window[1:]).unsqueeze(1)).squeeze(1)

    def _loss(self, text: str) -> float:
        return -float(self.log_probabilities(text).double().mean())


class _AttentionWeights(TorchFunctionMode):
    """Records the attention weights of each layer: attention returns its weights if the values are the identity."""

    def __init__(self, rows: slice = slice(None)) -> None:
        super().__init__()
        self.rows = rows
        self.weights: list[Tensor] = []
        """Weights (1, H, rows, T) of each layer."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            query, keys, values = args
            identity = torch.eye(keys.shape[2], dtype=values.dtype, device=values.device).expand(*keys.shape[:3], -1)
            self.weights.append(func(query, keys, identity, **kwargs)[:, :, self.rows].to(torch.float32, copy=True))
        return func(*args, **kwargs)


def load(
    where: str | Path = "best",
    *,
    name: str | None = None,
    device: str = "auto",
    weight_dtype: WeightDtype | None = None,
) -> LanguageModel:
    """Load a model and its tokenizer from a checkpoint, without Lightning.

    Args:
        where: A checkpoint; a run's folder, for its best checkpoint; or best or last.
        name: Name of the run in logs/ whose best or last checkpoint to load; None: the newest run.
        device: cpu, cuda, mps, or auto for the fastest of this machine.
        weight_dtype: Data type of the matrices for generation: float32, bfloat16 or int8; None: float32.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if it cannot be read or has no tokenizer, or the machine lacks the device.
    """
    path = find_checkpoint(str(where), name)
    checkpoint = read_checkpoint(path)
    model = checkpoint.transformer().to(available_device(device))
    return LanguageModel(
        model,
        checkpoint.require_tokenizer(),
        weight_dtype=weight_dtype,
        path=path,
        chat_template=checkpoint.chat_template,
    )


def available_device(device: str = "auto") -> str:
    """The type of a device of this machine; for auto, of the fastest.

    Raises:
        ValueError: if the machine lacks it.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    present = [kind for kind in there if there[kind]]
    if device != "auto" and device not in present:
        raise ValueError(f"device is {device}; it must be auto or available on this machine: {', '.join(present)}")
    return present[0] if device == "auto" else device
