"""Chats: completions of the prompts that a chat template makes, in the form of OpenAI's API."""

from typing import Any

from lit_lm.inference.chat import chat_ids
from lit_lm.serve.completions import Choice, Completion
from lit_lm.serve.requests import BadRequest, ChatRequest, CompletionRequest, check_length
from lit_lm.serve.worker import Worker


def chat_completion(worker: Worker, request: ChatRequest) -> "ChatCompletion":
    """The answer to a request.

    Raises:
        BadRequest: if the model is not for chats, or the request cannot be answered.
        TooManyWaiting, Stopped: as for `Worker.submit`.
    """
    check_length([message.content for message in request.messages], "messages")
    messages = [message.model_dump(exclude_none=True) for message in request.messages]
    try:
        ids = chat_ids(worker.model.tokenizer, worker.model.chat_template, messages)
    except ValueError as error:
        raise BadRequest(str(error), "messages") from None
    shared = request.model_dump(exclude={"messages", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs"})
    asked = CompletionRequest.model_validate(
        shared
        | {
            "prompt": ids,
            "max_tokens": request.max_completion_tokens or request.max_tokens,
            "logprobs": (request.top_logprobs or 0) if request.logprobs else None,
        }
    )
    return ChatCompletion(worker, asked)


class ChatCompletion(Completion):
    """A completion in the shape of a chat's answer."""

    kind = "chatcmpl"
    prompt_name = "messages"
    objects = ("chat.completion", "chat.completion.chunk")

    def chunk(self, change: Choice) -> dict[str, Any]:
        is_first = change.number not in self.offsets
        whole = super().chunk(change)
        (choice,) = whole["choices"]
        message = choice.pop("message")
        choice["delta"] = message if is_first else {"content": message["content"]}
        return whole

    def _choice(self, choice: Choice) -> dict[str, Any]:
        plain = super()._choice(choice)
        logprobs = None
        if self.request.logprobs is not None:
            logprobs = {"content": [_token(token) for token in self.tokens(choice)]}
        return {
            "index": plain["index"],
            "message": {"role": "assistant", "content": plain["text"]},
            "logprobs": logprobs,
            "finish_reason": plain["finish_reason"],
        }


def _token(token: dict[str, Any]) -> dict[str, Any]:
    return {
        **_bytes(token),
        "top_logprobs": [_bytes(each) for each in token["alternatives"]],
    }


def _bytes(token: dict[str, Any]) -> dict[str, Any]:
    return {"token": token["text"], "logprob": token["logprob"], "bytes": list(token["text"].encode())}
