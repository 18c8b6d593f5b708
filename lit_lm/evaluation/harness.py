"""A LanguageModel as EleutherAI's lm-evaluation-harness calls it.

The harness turns the items of a task into requests, and the answers into metrics. Its interface is
`lm_eval.api.model.TemplateLM` (https://github.com/EleutherAI/lm-evaluation-harness).
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from lit_lm.evaluation.scoring import Pair, log_likelihoods
from lit_lm.inference.generate import generate
from lit_lm.inference.language_model import LanguageModel
from lit_lm.inference.sampling import SamplingConfig
from lit_lm.inference.text import encode_prompt, stop_string_criterion, whole_text

MAX_NEW_TOKENS = 256
"""Length of a generated answer if the task does not say, as for the harness's own models."""


class HarnessModel(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """Scores and continues texts for the harness. A text without a context follows the end-of-text token."""

    def __init__(self, model: LanguageModel, batch_size: int) -> None:
        super().__init__()
        self.model, self.batch_size = model, batch_size
        self.max_length = model.config.context_length

    @property
    def eot_token_id(self) -> int:
        return self.model.tokenizer.end_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self.model.tokenizer.encode(string)

    def _encode_pair(self, context: str, continuation: str) -> Pair:
        """Ids of context and continuation. A token with characters of both belongs to the continuation.

        Such tokens are common in Chinese, which has no spaces. The harness's own models cut the ids of the whole text
        at the number of ids of the context alone, which leaves out characters of the continuation.
        """
        whole, alone = self.tok_encode(context + continuation), self.tok_encode(context.rstrip())
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(whole, alone, strict=False)))
        return (whole[:shared] or [self.eot_token_id]), whole[shared:]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, Sequence[int], Sequence[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """A continuation longer than the model's context is divided into the harness's windows: each token is scored
        once, after as many others as fit.
        """
        windows: list[Pair] = []
        owners: list[int] = []
        for number, (_texts, context, continuation) in enumerate(requests):
            added = [(context, continuation)]
            if not 0 < len(continuation) <= self.max_length:
                rolling = get_rolling_token_windows(continuation, context[-1], self.max_length, context_len=1)
                added = [make_disjoint_window(window) for window in rolling]
            windows += added
            owners += [number] * len(added)
        totals = [(0.0, True)] * len(requests)
        scores = log_likelihoods(self.model.transformer, windows, self.batch_size)
        for number, (value, likeliest) in zip(owners, scores, strict=True):
            totals[number] = totals[number][0] + value, totals[number][1] and likeliest
        return totals

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        texts = [request.args[0] for request in requests]
        whole = [(None, [self.eot_token_id], self.tok_encode(text)) for text in texts]
        return [value for value, _ in self._loglikelihood_tokens(whole)]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue prompts, in batches of those with equal options. A prompt that is too long loses its beginning."""
        prompts = [encode_prompt(self.model.tokenizer, request.args[0]) for request in requests]
        alike: dict[tuple[SamplingConfig, tuple[str, ...]], list[int]] = {}
        for number, request in enumerate(requests):
            sampling, stop, kept = self._options(request.args[1], len(prompts[number]))
            prompts[number] = prompts[number][-kept:]
            alike.setdefault((sampling, stop), []).append(number)
        texts = [""] * len(requests)
        for (sampling, stop), numbers in alike.items():
            numbers.sort(key=lambda number: len(prompts[number]))
            for start in range(0, len(numbers), self.batch_size):
                batch = {number: prompts[number] for number in numbers[start : start + self.batch_size]}
                for number, text in zip(batch, self._continued(batch, sampling, stop), strict=True):
                    texts[number] = text
        return texts

    def _options(self, given: Mapping[str, Any], prompt_size: int) -> tuple[SamplingConfig, tuple[str, ...], int]:
        """Sampling, stop strings, and the number of tokens of the prompt to keep, from a task's generation_kwargs."""
        options = dict(normalize_gen_kwargs(dict(given), MAX_NEW_TOKENS))
        until, size, sampled = options.pop("until", None) or [], options.pop("max_gen_toks"), options.pop("do_sample")
        kept = min(prompt_size, self.max_length - min(size, self.max_length // 2))
        if not sampled:
            options["temperature"] = 0.0
        try:
            sampling = SamplingConfig(**{"top_p": 1.0, **options, "max_new_tokens": min(size, self.max_length - kept)})
        except TypeError as error:
            raise ValueError(f"generation_kwargs of the task: {error}") from None
        return sampling, tuple([until] if isinstance(until, str) else until), kept

    def _continued(
        self, prompts: Mapping[int, Sequence[int]], sampling: SamplingConfig, stop: Sequence[str]
    ) -> Iterator[str]:
        """The continuation of each prompt. The seed is its number, so that repeats of a request differ."""
        tokenizer = self.model.tokenizer
        continuations = generate(
            self.model.generator.engine,
            list(prompts.values()),
            sampling,
            seeds=list(prompts),
            end_id=tokenizer.end_id,
            criterion=stop_string_criterion(tokenizer, stop),
        )
        for (number, prompt), (continuation, *_) in zip(prompts.items(), continuations, strict=True):
            yield whole_text(tokenizer, "", prompt, number, continuation, stop).continuation
