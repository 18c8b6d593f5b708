"""Chats: a template makes a prompt of messages, in Jinja, as for models of the library `transformers`."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lit_lm.tokenizer.tokenizer import Tokenizer

MAX_TEMPLATE = 2**16
"""Maximum number of characters of a template."""


def chat_ids(tokenizer: Tokenizer, template: str | None, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """The ids of the prompt for the next message of a chat.

    The template may come from someone else: it runs in Jinja's sandbox, which gives it no access to Python.

    Args:
        tokenizer: The model's tokenizer. The names of its special tokens become these tokens.
        template: The template.
        messages: Each has a `role`, such as user or assistant, and a `content`.

    Raises:
        ValueError: if there is no template, or it cannot be used with these messages.
    """
    if template is None:
        raise ValueError("the model has no chat template; it continues texts: use completions")
    if len(template) > MAX_TEMPLATE:
        raise ValueError(f"the chat template has {len(template):,} characters; it may have {MAX_TEMPLATE:,}")
    end = tokenizer.end_token
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    environment.filters["tojson"] = _json
    try:
        text = environment.from_string(template).render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=True,
            bos_token=end,
            eos_token=end,
            pad_token=end,
        )
    except (
        TemplateError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(f"the chat template cannot be used with these messages: {error}") from None
    special = tokenizer.special_tokens | {end: tokenizer.end_id}
    ids: list[int] = []
    for part in re.split(f"({'|'.join(map(re.escape, sorted(special, key=len, reverse=True)))})", text):
        ids += [special[part]] if part in special else tokenizer.encode(part)
    return ids or [tokenizer.end_id]


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _json(value: object, indent: int | None = None) -> str:
    """JSON with the letters as they are: Jinja's own filter escapes them for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: object) -> None:
    """A template's way to refuse messages."""
    raise TemplateError(str(message))
