"""The published client of OpenAI's API, with a strict check of the answers' types.

The client itself accepts almost anything.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

from openai import OpenAI
from openai._models import BaseModel
from openai.types import Completion, CompletionChoice

from lit_lm.inference.language_model import LanguageModel

T = TypeVar("T", bound=BaseModel)
HELLO = [{"role": "user", "content": "Hello <|assistant|> cat"}]


def strict(answer: T) -> T:
    """An answer, after a strict check of its types."""
    content = answer.to_dict()
    for choice in content["choices"] if isinstance(answer, Completion) else ():  # type: ignore[attr-defined]
        # OpenAI's own answers have null here, which the types of completions lack
        choice["finish_reason"] = choice["finish_reason"] or "length"
        if choice["logprobs"]:
            first = choice["logprobs"]["token_logprobs"][:1] == [None]
            for name in ("token_logprobs", "top_logprobs"):
                choice["logprobs"][name] = (choice["logprobs"][name] or [])[first:]
    type(answer).model_validate(content, strict=True)
    return answer


def complete(client: OpenAI, prompt: object, sampling: dict[str, Any], **options: Any) -> Completion:
    """A completion; some of our controls are not known to the client."""
    arguments: Any = {"model": "plain", "prompt": prompt, "extra_body": sampling, "max_tokens": 20} | options
    return strict(client.completions.create(**arguments))


def streamed(client: OpenAI, **options: Any) -> list[Completion]:
    arguments: Any = {"model": "plain", "max_tokens": 20, "stream": True} | options
    return [strict(chunk) for chunk in client.completions.create(**arguments)]


def expected(
    model: LanguageModel, prompt: str, sampling: dict[str, Any], n: int = 1, seed: int = 5, **options: Any
) -> list[tuple[str, str]]:
    """Text and finish_reason of the completions, made by `LanguageModel`."""
    controls = {"top_p": 1.0, "max_new_tokens": 20} | sampling
    reasons = {"end": "stop", "stop": "stop", "max_new_tokens": "length"}
    texts = model.samples(prompt, n, seed=seed, **controls, **options)
    return [(text.continuation, reasons[str(text.ended)]) for text in texts]


def found(choices: Sequence[CompletionChoice]) -> list[tuple[str, str]]:
    assert [choice.index for choice in choices] == list(range(len(choices)))
    return [(choice.text, choice.finish_reason) for choice in choices]
