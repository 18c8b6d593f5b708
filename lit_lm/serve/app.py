"""The server's routes: OpenAI's API, the page, and what the page needs besides."""

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from lit_lm.serve.chat import chat_completion
from lit_lm.serve.completions import Completion, shown
from lit_lm.serve.errors import error_content, failed, refused, unheard
from lit_lm.serve.metrics import Metrics
from lit_lm.serve.requests import (
    AttentionRequest,
    BadRequest,
    ChatRequest,
    CompletionRequest,
    TokenizeRequest,
    body_of,
    check_length,
    parse,
)
from lit_lm.serve.worker import Stopped, TooManyWaiting, Worker
from lit_lm.tokenizer.tokenizer import Tokenizer

PAGE = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
"""Media types of the page's files."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


class Server:
    """Answers requests with the models of some workers."""

    def __init__(self, workers: Sequence[Worker], api_key: str | None = None) -> None:
        self.workers = {worker.name: worker for worker in workers}
        self.default = workers[0]
        self.api_key = api_key
        self.started = int(time.time())
        self.metrics = Metrics(workers)

    def worker(self, name: str | None) -> Worker:
        """The worker of a model; None: the first.

        Raises:
            BadRequest: if there is no such model.
        """
        if name is None:
            return self.default
        if name not in self.workers:
            known = ", ".join(self.workers)
            raise BadRequest(
                f"there is no model {name[:100]}; there is {known}", "model", code="model_not_found", status=404
            )
        return self.workers[name]

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`."""
        return JSONResponse({"object": "list", "data": [self._model(worker) for worker in self.workers.values()]})

    async def model(self, request: Request) -> Response:
        """`GET /v1/models/NAME`."""
        return JSONResponse(self._model(self.worker(request.path_params["name"])))

    def _model(self, worker: Worker) -> dict[str, Any]:
        config, model = worker.model.config, worker.model
        about = {
            "parameters": sum(parameter.numel() for parameter in model.transformer.parameters()),
            "context_length": config.context_length,
            "vocab_size": config.vocab_size,
            "num_layers": config.num_layers,
            "num_heads": config.num_heads,
            "chat": model.chat_template is not None,
        }
        return {"id": worker.name, "object": "model", "created": self.started, "owned_by": "lit-lm", "lit_lm": about}

    async def completions(self, request: Request) -> Response:
        """`POST /v1/completions`."""
        asked = parse(CompletionRequest, await body_of(request))
        return await self._answer(request, Completion(self.worker(asked.model), asked), asked)

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        asked = parse(ChatRequest, await body_of(request))
        return await self._answer(request, chat_completion(self.worker(asked.model), asked), asked)

    async def _answer(
        self, request: Request, completion: Completion, asked: CompletionRequest | ChatRequest
    ) -> Response:
        with_usage = asked.stream_options is not None and asked.stream_options.include_usage
        if asked.stream:
            return StreamingResponse(self._events(completion, with_usage), media_type="text/event-stream")
        started = time.perf_counter()
        whole = asyncio.create_task(completion.whole())
        gone = asyncio.create_task(_disconnected(request))
        try:
            await asyncio.wait({whole, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not whole.done():
                raise ClientDisconnect
            answer = whole.result()
        finally:
            whole.cancel()
            gone.cancel()
            completion.cancel()
            self.metrics.finished(completion, started, first=None)
        return JSONResponse(answer)

    async def _events(self, completion: Completion, with_usage: bool) -> AsyncIterator[str]:
        """The events of a stream (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
        started, first = time.perf_counter(), None
        try:
            async for change in completion.changes():
                first = first or time.perf_counter()
                yield _event(completion.chunk(change))
                await asyncio.sleep(0)  # let the loop notice that the client has gone, also if there is much to send
            if with_usage:
                yield _event(completion.answer([], is_part=True) | {"usage": completion.usage()})
        except (BadRequest, Stopped) as error:  # the status has been sent
            yield _event(error_content(error))
        finally:
            completion.cancel()
            self.metrics.finished(completion, started, first)
        yield "data: [DONE]\n\n"

    def guarded(self, endpoint: Endpoint) -> Endpoint:
        """An endpoint that needs the key, if there is one, and counts its responses."""

        async def checked(request: Request) -> Response:
            path = request.scope["route"].path
            try:
                self._check_key(request)
                response = await endpoint(request)
            except (BadRequest, TooManyWaiting, Stopped) as error:
                response = await refused(request, error)
            self.metrics.responded(path, response.status_code)
            return response

        return checked

    def _check_key(self, request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.api_key is not None and not hmac.compare_digest(given.encode("latin-1"), self.api_key.encode()):
            raise BadRequest(
                "the request needs the header Authorization: Bearer KEY with the server's key",
                code="invalid_api_key",
                status=401,
            )

    async def tokenize(self, request: Request) -> Response:
        """`POST /api/tokenize`: how a text splits."""
        asked = parse(TokenizeRequest, await body_of(request))
        tokenizer = self.worker(asked.model).model.tokenizer
        ids = _encoded(tokenizer, asked.text)
        return JSONResponse({"tokens": [{"id": number, "text": shown(tokenizer, number)} for number in ids]})

    async def attention(self, request: Request) -> Response:
        """`POST /api/attention`: which tokens one token attends to."""
        asked = parse(AttentionRequest, await body_of(request))
        worker = self.worker(asked.model)
        if asked.position >= len(asked.ids):
            raise BadRequest(f"position is {asked.position}; there are {len(asked.ids)} ids", "position")

        def weights() -> list[Any]:
            with worker.lock:
                found = worker.model.attention_of_last(asked.ids[: asked.position + 1])
            rounded: list[Any] = (found * 10_000).round().div(10_000).tolist()
            return rounded

        try:
            return JSONResponse({"weights": await asyncio.to_thread(weights)})
        except ValueError as error:
            raise BadRequest(str(error), "ids") from None

    async def health(self, request: Request) -> Response:
        """`GET /health`."""
        return JSONResponse({"status": "ok"})

    async def show_metrics(self, request: Request) -> Response:
        """`GET /metrics`."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def page(self, request: Request) -> Response:
        """`GET /` and the page's files."""
        name = request.path_params.get("name", "index.html")
        files = {file.name: file for file in resources.files("lit_lm.serve").joinpath("page").iterdir()}
        kind = PAGE.get(name.rpartition(".")[2])
        if kind is None or name not in files:
            raise HTTPException(404)
        return Response(files[name].read_bytes(), media_type=kind, headers=HEADERS)


async def _nothing(request: Request) -> Response:
    """What browsers ask for and the page does not have."""
    return Response(status_code=204)


async def _disconnected(request: Request) -> None:
    """Return when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _event(content: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"  # in ASCII: some clients would end a line at U+2028


def _encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    check_length([text], "text")
    try:
        return tokenizer.encode(text)
    except ValueError as error:
        raise BadRequest(str(error), "text") from None


def make_app(
    workers: Sequence[Worker],
    *,
    api_key: str | None = None,
    hosts: Sequence[str] = ("*",),
    cors_origins: Sequence[str] = (),
) -> Starlette:
    """The application.

    Args:
        workers: The models, at least one; started and stopped with the application.
        api_key: Key that clients must send, as `Authorization: Bearer KEY`; None: no key.
        hosts: Host names under which the server may be reached: a page of another site could otherwise reach a
            server of this machine under a name of its own.
        cors_origins: Origins, such as https://example.org, whose pages may use the server.
    """
    server = Server(workers, api_key)

    @asynccontextmanager
    async def running(app: Starlette) -> AsyncIterator[None]:
        for worker in workers:
            worker.start()
        yield
        for worker in workers:
            worker.stop()

    routes = [
        Route("/", server.page),
        Route("/favicon.ico", _nothing),
        Route("/page/{name:path}", server.page),
        Route("/health", server.health),
        Route("/metrics", server.show_metrics),
        Route("/v1/models", server.guarded(server.models)),
        Route("/v1/models/{name:path}", server.guarded(server.model)),
        *(
            Route(path, server.guarded(endpoint), methods=["POST"])
            for path, endpoint in {
                "/v1/completions": server.completions,
                "/v1/chat/completions": server.chat,
                "/api/tokenize": server.tokenize,
                "/api/attention": server.attention,
            }.items()
        ),
    ]
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)]
    if cors_origins:
        middleware.append(
            Middleware(CORSMiddleware, allow_origins=list(cors_origins), allow_methods=["*"], allow_headers=["*"])
        )
    handlers: Mapping[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
        HTTPException: refused,
        ClientDisconnect: unheard,
        Exception: failed,
    }
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=running)
