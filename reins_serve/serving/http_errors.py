"""Every error as the API shows it: `{"error": {"message", "type", "param", "code"}}`, without traceback, path or raw input."""

import itertools
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reins_serve.errors import ReinsError
from reins_serve.serving.privacy import without_messages
from reins_serve.serving.schema import ErrorAnswer, ErrorBody

PLAIN = re.compile(r"[A-Za-z0-9_.]{1,64}")

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 5

STATUS = {
    "invalid_value": 400,
    "missing_required_parameter": 400,
    "unknown_parameter": 400,
    "unsupported_size": 400,
    "too_many_frames": 400,
    "invalid_api_key": 401,
    "steering_required": 403,
    "admin_only": 403,
    "not_found": 404,
    "video_not_found": 404,
    "model_not_found": 404,
    "direction_not_found": 404,
    "method_not_allowed": 405,
    "direction_invalid": 400,
    "conflict": 409,
    "idempotency_conflict": 409,
    "gates_failed": 409,
    "video_not_ready": 409,
    "video_failed": 409,
    "video_expired": 410,
    "payload_too_large": 413,
    "range_not_satisfiable": 416,
    "queue_full": 429,
    "not_ready": 503,
    "steering_unavailable": 503,
    "storage_failed": 503,
    "registry_unavailable": 503,
}
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}
HEADERS: Mapping[str, Mapping[str, str]] = {
    "queue_full": {"Retry-After": str(RETRY_AFTER_S)},
    "not_ready": {"Retry-After": str(RETRY_AFTER_S)},
    "invalid_api_key": {"WWW-Authenticate": "Bearer"},
}


class RequestError(ReinsError):
    """A request that the API refuses; `code` is one of `STATUS`."""


def invalid(errors: Sequence[Mapping[str, Any]]) -> RequestError:
    """The first of pydantic's errors in the API's words; what was sent is not repeated."""
    first = errors[0]
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    # Pydantic also names the member of a union, or a key of `metadata`: only these have fields of their own.
    param = ".".join(place[: 2 if place[:1] in (["steering"], ["input_reference"]) else 1]) or None
    if first["type"] == "extra_forbidden":
        # The name of an unknown field is the client's own text, so it is not repeated either, unless it is a plain word.
        named = (
            param
            if param is not None and param.replace("_", "").replace(".", "").isalnum() and len(param) <= 64
            else None
        )
        return RequestError("There is a field that this API does not know.", code="unknown_parameter", param=named)
    if first["type"] == "missing":
        return RequestError("A required field is missing.", code="missing_required_parameter", param=param)
    if first["type"] == "json_invalid":
        return RequestError("The body is not valid JSON.", code="invalid_value")
    return RequestError(f"{first['msg']}.", code="invalid_value", param=param)


def answer(error: ReinsError) -> JSONResponse:
    """The response for one of our errors; a code that is not the API's is an internal error, and says no more."""
    status = STATUS.get(error.code)
    if status is None:
        return internal(error)
    if error.code == "storage_failed":  # names files
        logger.error("the store of directions failed", exc_info=error)
        message = "The store of directions cannot be read or written, or is damaged; the server's log says where."
        return _response(status, message, error.code, error.param)
    return _response(status, str(error), error.code, error.param)


def internal(error: Exception) -> JSONResponse:
    """The response for what should not happen; the log says where it did."""
    logger.error("unexpected error while answering a request\n%s", without_messages(error))
    return _response(500, "Something went wrong inside the server; its log says where.", "internal_error", None)


class Unexpected:
    """Middleware that answers exceptions nobody expects. Starlette would hand them on, and the server log what they say."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception as error:
            response = internal(error)
            if begun:
                raise ReinsError("The answer broke off.") from None  # the server then breaks the connection too
            await response(scope, receive, send)


def install(app: FastAPI) -> None:
    """Make an application answer all its errors in this shape."""

    @app.exception_handler(ReinsError)
    async def ours(request: Request, error: ReinsError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def fastapis(request: Request, error: RequestValidationError) -> JSONResponse:
        return answer(invalid(error.errors()))

    @app.exception_handler(ValidationError)
    async def pydantics(request: Request, error: ValidationError) -> JSONResponse:
        return answer(invalid(error.errors(include_url=False, include_context=False, include_input=False)))

    @app.exception_handler(HTTPException)
    async def starlettes(request: Request, error: HTTPException) -> JSONResponse:
        known = {404: "not_found", 405: "method_not_allowed", 413: "payload_too_large"}
        code = known.get(error.status_code, "invalid_value" if error.status_code < 500 else "internal_error")
        messages = {
            "not_found": "There is nothing at this address.",
            "method_not_allowed": "This address does not know the method.",
        }
        messages["payload_too_large"] = str(error.detail)  # our own: see BodyLimits
        message = messages.get(code, "The request could not be read.")
        headers = dict(error.headers or {})
        if error.status_code == 405:  # Starlette names the methods of one route, and a path may have several
            known_methods = [
                sorted(getattr(route, "methods", None) or ())
                for route in app.routes
                if route.matches(request.scope)[0] is not Match.NONE
            ]
            headers["Allow"] = ", ".join(sorted(itertools.chain.from_iterable(known_methods)))
        return _response(error.status_code, message, code, None, headers)

    app.add_middleware(Unexpected)


def _response(
    status: int, message: str, code: str, param: str | None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    body = ErrorAnswer(error=ErrorBody(message=message, type=kind, param=param, code=code))
    return JSONResponse(body.model_dump(), status, {**HEADERS.get(code, {}), **(headers or {})})
