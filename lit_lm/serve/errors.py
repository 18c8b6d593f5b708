"""Responses to requests that cannot be answered, in the form of OpenAI's API."""

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lit_lm.serve.requests import BadRequest
from lit_lm.serve.worker import TooManyWaiting

RETRY_SECONDS = 1


def error_content(error: Exception) -> dict[str, Any]:
    """An error in OpenAI's form."""
    status = getattr(error, "status", 503)
    return {
        "error": {
            "message": _unicode(str(error)),
            "type": "invalid_request_error" if status < 500 else "server_error",
            "param": _unicode(getattr(error, "param", None) or "") or None,
            "code": getattr(error, "code", None),
        }
    }


def _unicode(text: str) -> str:
    """A text without lone surrogates, which JSON may have, but UTF-8 may not."""
    return text.encode(errors="replace").decode()


async def refused(request: Request, error: Exception) -> Response:
    """The response to a request that cannot be answered."""
    if isinstance(error, TooManyWaiting):
        busy = BadRequest("too many requests are waiting; try again later", code="rate_limit_exceeded", status=429)
        return JSONResponse(error_content(busy), 429, headers={"Retry-After": str(RETRY_SECONDS)})
    if isinstance(error, HTTPException):
        found = BadRequest(f"{request.method} {request.url.path[:100]}: {error.detail}", status=error.status_code)
        return JSONResponse(error_content(found), error.status_code, headers=error.headers)
    return JSONResponse(error_content(error), getattr(error, "status", 503))


async def unheard(request: Request, error: Exception) -> Response:
    """The response that nobody receives."""
    return Response(status_code=499)


async def failed(request: Request, error: Exception) -> Response:
    """The response after an error in the server itself, which is logged."""
    failure = BadRequest("the server made a mistake, which its log shows", status=500)
    return JSONResponse(error_content(failure), 500)
