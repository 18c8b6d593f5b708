"""Completions: from a request to the answer, whole or as a stream, in the form of OpenAI's API."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from uuid import uuid4

import torch

from lit_lm.inference.batch import check_tokens
from lit_lm.inference.continuation import Ended, Token
from lit_lm.inference.generate import likeliest
from lit_lm.inference.text import Piece, Pieces, encode_prompt
from lit_lm.serve.requests import BadRequest, CompletionRequest, check_length
from lit_lm.serve.worker import Job, Worker
from lit_lm.tokenizer.formats import byte_letters
from lit_lm.tokenizer.tokenizer import Tokenizer

FINISH_REASONS: dict[Ended, str] = {"end": "stop", "stop": "stop", "max_new_tokens": "length", "context": "length"}


@dataclass
class Choice:
    """A continuation, as far as it has been generated, or its newest part."""

    number: int
    pieces: list[Piece] = field(default_factory=list)
    ended: Ended | None = None


class Completion:
    """The answer to one request."""

    kind = "cmpl"
    """Begins its id."""
    prompt_name = "prompt"
    """The parameter that has the prompt."""
    objects = ("text_completion", "text_completion")
    """Its `object`, and that of a part of it in a stream."""

    def __init__(self, worker: Worker, request: CompletionRequest) -> None:
        """
        Raises:
            BadRequest: if the request cannot be answered with this model.
            TooManyWaiting, Stopped: as for `Worker.submit`.
        """
        self.worker, self.request = worker, request
        self.id, self.created = f"{self.kind}-{uuid4().hex}", int(time.time())
        self.tokenizer = worker.model.tokenizer
        prompts = _prompts(request)
        check_length([prompt for prompt in prompts if isinstance(prompt, str)], "prompt")
        self.prompts = [self._ids(prompt) for prompt in prompts]
        self._check()
        self.num_alternatives = min(request.logprobs or 0, worker.model.config.vocab_size)
        self.offsets: dict[int, int] = {}
        """Number of characters of each choice that have been sent."""
        self.job = self._job() if request.max_tokens != 0 else None

    def _ids(self, prompt: str | Sequence[int]) -> list[int]:
        if not isinstance(prompt, str):
            return list(prompt)
        try:
            return encode_prompt(self.tokenizer, prompt)
        except ValueError as error:
            raise BadRequest(str(error), "prompt") from None

    def _check(self) -> None:
        """Refuse prompts that the model cannot continue."""
        config, new = self.worker.model.config, self.request.max_tokens
        if new == 0 and self.request.n > 1:
            raise BadRequest(f"n is {self.request.n}; with max_tokens 0, it must be 1", "n")
        for prompt in self.prompts:
            try:
                check_tokens("the prompt", prompt, config)
            except ValueError as error:
                raise BadRequest(str(error), "prompt") from None
            if len(prompt) + (1 if new is None else new) > config.context_length:
                raise BadRequest(
                    f"the prompt has {len(prompt)} tokens, and max_tokens is {new}; "
                    f"together, at most {config.context_length} fit into the context",
                    self.prompt_name if len(prompt) >= config.context_length else "max_tokens",
                    code="context_length_exceeded",
                )

    def _job(self) -> Job:
        request = self.request
        job = Job(
            self.prompts,
            request.sampling(request.max_tokens),
            request.seed_or_random(),
            request.stop_strings(),
            self.num_alternatives,
            request.biases(),
        )
        try:
            self.worker.submit(job)
        except ValueError as error:
            raise BadRequest(str(error)) from None
        return job

    async def changes(self) -> AsyncIterator[Choice]:
        """Yield each new part of a choice; the prompts first, if they are to be echoed.

        Raises:
            Stopped: if the model failed, or the server is shutting down.
        """
        if self.request.echo:
            for number, prompt in enumerate(self.prompts):
                pieces = await asyncio.to_thread(self._echoed, prompt)
                for sample in range(self.request.n):
                    ended: Ended | None = "max_new_tokens" if self.job is None else None
                    yield Choice(number * self.request.n + sample, pieces, ended)
        elif self.job is None:
            for number in range(len(self.prompts) * self.request.n):
                yield Choice(number, ended="max_new_tokens")
        if self.job is not None:
            async for event in self.job.events():
                yield Choice(event.number, list(event.pieces), event.ended)

    def cancel(self) -> None:
        """End the continuations that are still running."""
        if self.job is not None:
            self.job.cancelled = True

    async def whole(self) -> dict[str, Any]:
        """The answer as one object."""
        choices = [Choice(number) for number in range(len(self.prompts) * self.request.n)]
        async for change in self.changes():
            choices[change.number].pieces += change.pieces
            choices[change.number].ended = change.ended
        return self.answer(choices) | {"usage": self.usage()}

    def answer(self, choices: Sequence[Choice], *, is_part: bool = False) -> dict[str, Any]:
        """The object with these choices, without usage."""
        return {
            "id": self.id,
            "object": self.objects[is_part],
            "created": self.created,
            "model": self.worker.name,
            "choices": [self._choice(choice) for choice in choices],
        }

    def chunk(self, change: Choice) -> dict[str, Any]:
        """The object of a stream that contains a new part of a choice."""
        return self.answer([change], is_part=True)

    def usage(self) -> dict[str, int]:
        """Numbers of tokens."""
        prompt = sum(map(len, self.prompts))
        completion = 0 if self.job is None else self.job.num_tokens
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def _choice(self, choice: Choice) -> dict[str, Any]:
        offset, offsets = self.offsets.get(choice.number, 0), list[int]()
        for piece in choice.pieces:
            offsets += [offset] * len(piece.tokens)
            offset += len(piece.text)
        self.offsets[choice.number] = offset
        tokens = self.tokens(choice)
        found: dict[str, Any] = {
            "text": "".join(piece.text for piece in choice.pieces),
            "index": choice.number,
            "logprobs": None if self.request.logprobs is None else self._logprobs(tokens, offsets),
            "finish_reason": None if choice.ended is None else FINISH_REASONS[choice.ended],
        }
        return found | ({"tokens": tokens} if self.request.return_tokens else {})

    def _logprobs(self, tokens: Sequence[dict[str, Any]], offsets: Sequence[int]) -> dict[str, Any]:
        alternatives = [_by_text(token["alternatives"]) for token in tokens]
        return {
            "tokens": [token["text"] for token in tokens],
            "token_logprobs": [token["logprob"] for token in tokens],
            "top_logprobs": alternatives if self.num_alternatives else None,
            "text_offset": list(offsets),
        }

    def tokens(self, choice: Choice) -> list[dict[str, Any]]:
        """The tokens of a choice; the text of a character that takes several is with the last of them."""
        return [
            self._token(token, piece.text if token is piece.tokens[-1] else "")
            for piece in choice.pieces
            for token in piece.tokens
        ]

    def _token(self, token: Token, text: str) -> dict[str, Any]:
        return {
            "id": token.id,
            "text": text,
            "logprob": None if token.log_probability == NO_LOGPROB else token.log_probability,
            "alternatives": [
                {"id": number, "text": shown(self.tokenizer, number), "logprob": value}
                for number, value in token.alternatives
            ],
        }

    def _echoed(self, prompt: Sequence[int]) -> list[Piece]:
        """A prompt with the log-probabilities of its tokens; the first has none.

        An end-of-text token at the beginning stands before the text, and has none of its own.
        """
        model = self.worker.model
        tokens = [Token(number, NO_LOGPROB) for number in prompt]
        if self.request.logprobs is not None and len(prompt) > 1:
            device = model.transformer.head.weight.device
            with self.worker.lock:
                logits = model.generator.engine.logits(torch.tensor([prompt], device=device))[0, :-1]
                normalizers = model.generator.engine.logsumexp(logits)
            for place, (row, normalizer) in enumerate(zip(logits, normalizers, strict=True), start=1):
                alternatives = likeliest(row, normalizer, self.num_alternatives)
                tokens[place] = Token(prompt[place], float(row[prompt[place]] - normalizer), alternatives)
        begins = prompt[0] == self.tokenizer.end_id
        pieces = Pieces(self.tokenizer, (), ())
        found = [piece for token in tokens[begins:] for piece in pieces.feed(token)] + pieces.finish()
        return [Piece("", (tokens[0],)), *found] if begins else found


def _by_text(alternatives: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """The log-probabilities of alternatives, likeliest first; of those with the same text, only the likeliest."""
    found: dict[str, float] = {}
    for each in alternatives:
        found.setdefault(each["text"], each["logprob"])
    return found or None


NO_LOGPROB = math.inf
"""Stands for the log-probability of a token that has none."""


@lru_cache(maxsize=2**18)  # the tokens of several models
def shown(tokenizer: Tokenizer, number: int) -> str:
    """The text of a token; of one that is a part of a character, its bytes, such as <E4>."""
    before = tokenizer.encode("a")  # at the beginning, some tokenizers drop a space
    text = tokenizer.decode([*before, number])[len(tokenizer.decode(before)) :]
    if "\ufffd" not in text:
        return text
    name, bytes_of = tokenizer.token(number), {letter: byte for byte, letter in byte_letters().items()}
    return "".join(f"<{bytes_of[letter]:02X}>" for letter in name) if set(name) <= bytes_of.keys() else name


def _prompts(request: CompletionRequest) -> list[str | list[int]]:
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [[number for number in prompt if isinstance(number, int)]]
    return [each for each in prompt if not isinstance(each, int)]
