"""What clients may ask for, in the form of OpenAI's API (https://platform.openai.com/docs/api-reference)."""

import asyncio
import json
import random
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from lit_lm.inference.sampling import SamplingConfig

MAX_BODY_BYTES = 2**20
BODY_SECONDS = 20
"""Time in which a client must have sent a request."""
MAX_SEED = 2**63 - 1
MAX_COUNT = 2**31 - 1
MAX_CHARACTERS = 200_000
"""Most characters of the texts of a request: while a text is encoded, the server does nothing else."""

Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
TokenId = Annotated[int, Field(ge=0, le=MAX_COUNT)]
# a list ends at its first error: a million of them would take seconds
TokenIds = Annotated[list[TokenId], Field(fail_fast=True, min_length=1)]
T = TypeVar("T", bound=BaseModel)


class BadRequest(Exception):
    """A request that cannot be answered."""

    def __init__(self, message: str, param: str | None = None, *, code: str | None = None, status: int = 400) -> None:
        """
        Args:
            message: What is wrong, for a person.
            param: The parameter that is wrong.
            code: What is wrong, for a program.
            status: Status code of HTTP.
        """
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _StreamOptions(_Request):
    include_usage: bool = False
    include_obfuscation: bool = False  # of OpenAI's own servers; nothing to do


class Sampled(_Request):
    """What completions and chats have in common."""

    model: str | None = None
    temperature: float = Field(1.0, ge=0, le=100, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    top_k: Count | None = None
    min_p: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100, allow_inf_nan=False)  # a logit must not become infinite
    frequency_penalty: float = Field(0.0, ge=-2, le=2, allow_inf_nan=False)
    presence_penalty: float = Field(0.0, ge=-2, le=2, allow_inf_nan=False)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]] | None = Field(
        None, max_length=1000
    )
    n: Annotated[int, Field(ge=1, le=128)] = 1
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    seed: Annotated[int, Field(ge=-MAX_SEED, le=MAX_SEED)] | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None
    user: str | None = None  # of no use here, but clients send it

    def sampling(self, max_new_tokens: int | None) -> SamplingConfig:
        """The controls, as `lit-lm generate` has them."""
        return SamplingConfig(
            max_new_tokens=max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            num_samples=self.n,
        )

    def stop_strings(self) -> list[str]:
        """The stop strings.

        Raises:
            BadRequest: if one is empty.
        """
        strings = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if "" in strings:
            raise BadRequest("stop has an empty string; it must not", "stop")
        return strings

    def biases(self) -> dict[int, float]:
        """The bias of each token id.

        Raises:
            BadRequest: if a key is not a token id.
        """
        given = self.logit_bias or {}
        if wrong := [key for key in given if not (key.isascii() and key.isdigit() and len(key) < 10)]:
            raise BadRequest(f"logit_bias has {wrong[0][:40]!r}; its keys are token ids", "logit_bias")
        return {int(key): value for key, value in given.items()}

    def seed_or_random(self) -> int:
        """The seed, or a new one."""
        return random.randrange(2**32) if self.seed is None else self.seed


class CompletionRequest(Sampled):
    """`POST /v1/completions`."""

    prompt: (
        str
        | Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=128)]
        | TokenIds
        | Annotated[list[TokenIds], Field(fail_fast=True, min_length=1, max_length=128)]
    ) = ""
    max_tokens: Annotated[int, Field(ge=0, le=MAX_COUNT)] | None = 16
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool = False
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    suffix: None = None
    return_tokens: bool = False


class Message(_Request):
    """A message of a chat."""

    role: str
    content: str
    name: str | None = None


class ChatRequest(Sampled):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class TokenizeRequest(_Request):
    """`POST /api/tokenize`."""

    model: str | None = None
    text: str


class AttentionRequest(_Request):
    """`POST /api/attention`."""

    model: str | None = None
    ids: TokenIds
    position: Annotated[int, Field(ge=0)]


async def body_of(request: Request) -> bytes:
    """The body of a request.

    Raises:
        BadRequest: if it is not JSON by its header, too large, or does not arrive in time.
    """
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size <= MAX_BODY_BYTES:  # what is more is received, but not kept: clients read no answer before
                    body += part
    except TimeoutError:
        raise BadRequest(f"the body did not arrive within {BODY_SECONDS} seconds", status=408) from None
    if size > MAX_BODY_BYTES:
        raise BadRequest(f"the body has {size:,} bytes; at most {MAX_BODY_BYTES:,} are allowed", status=413)
    # a page of another site can send other types without being asked for permission (CORS)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise BadRequest("the request needs the header Content-Type: application/json", status=415)
    return bytes(body)


def parse(kind: type[T], body: bytes) -> T:
    """Read a request. Null is the default, except that max_tokens null is all that the context has room for.

    Raises:
        BadRequest: naming the first parameter that is wrong.
    """
    try:
        content = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}"[:200]) from None
    if not isinstance(content, dict):
        raise BadRequest("the body must be a JSON object")
    if unknown := next((name for name in content if name not in kind.model_fields), None):
        raise BadRequest(f"there is no parameter {unknown[:100]}", unknown[:100], code="unknown_parameter")
    given = {name: value for name, value in content.items() if value is not None or name == "max_tokens"}
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = min(error.errors(include_url=False, include_context=False), key=lambda each: len(each["loc"]))
        raise _explained(first, given) from None


def check_length(texts: Sequence[str], param: str) -> None:
    """Refuse texts that are too long to be encoded.

    Raises:
        BadRequest: if they are.
    """
    if (size := sum(map(len, texts))) > MAX_CHARACTERS:
        raise BadRequest(f"{param} has {size:,} characters; at most {MAX_CHARACTERS:,} are allowed", param)


def _explained(error: Any, content: dict[str, Any]) -> BadRequest:
    name = str(error["loc"][0])
    if error["type"] == "missing" and len(error["loc"]) == 1:
        return BadRequest(f"{name} is missing", name)
    value = json.dumps(content.get(name), ensure_ascii=False)
    shown = value if len(value) <= 60 else f"{value[:60]}..."
    return BadRequest(f"{name} is {shown}: {error['msg']}", name)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number in JSON")
