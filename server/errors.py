"""Every error in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from framework.errors import CallerError, LecternError, OperatorError

# Codes of OpenAI's where it has one for the status; other errors carry their own.
CODES = {401: "invalid_api_key", 404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}
SHOWN = 200  # characters of a path that a message repeats


class Stopping(OperatorError):
    """The server was told to stop before the answer was finished."""

    code = "server_stopping"


class Unauthorized(CallerError):
    """The token is missing or wrong."""

    status = 401
    code = "invalid_api_key"


class Misdirected(CallerError):
    """The request names a host that this server does not answer for."""

    status = 421
    code = "misdirected_request"


class BodyTimeout(CallerError):
    """The request's body did not arrive in time."""

    status = 408
    code = "request_timeout"


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as it goes over the wire."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status)
        kind = kind or ("invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def json(self) -> bytes:
        return json.dumps(self.body).encode("ascii")

    def response(self) -> Response:
        return Response(self.json, self.status, dict(self.headers), media_type="application/json")


def problem_of(error: BaseException) -> Problem:
    """What the caller is told of an error. One that was not raised on purpose says nothing of its inside."""
    if isinstance(error, LecternError):
        headers = {"Retry-After": "1"} if error.status in (429, 503) else {}
        return Problem(error.status, str(error), error.code, error.field, headers)
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        return Problem(error.status_code, str(error.detail), CODES.get(error.status_code), None, error.headers or {})
    return Problem(500, "The server failed to answer this request; its log has the details.", "internal_error")


def install(app: FastAPI) -> None:
    """Answer every exception of the app's routes, and unknown paths and methods, in this shape."""

    async def answer(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException) and error.status_code in (404, 405):
            error = HTTPException(error.status_code, _no_route(request, error.status_code), error.headers)
        return problem_of(error).response()

    for kind in (LecternError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer)


def _no_route(request: Request, status: int) -> str:
    what = f"{request.method} {request.url.path[:SHOWN]}"
    return (
        f"There is no route {what}. GET /openapi.json lists those that exist."
        if status == 404
        else (f"{what} is not allowed: {HTTPStatus(status).phrase}.")
    )


def _invalid(error: RequestValidationError) -> Problem:
    """The deepest of a validation's errors: of a union's alternatives it is the one that fitted best."""
    if isinstance(error.body, bytes):
        return Problem(400, "The body must be JSON. Send it with Content-Type: application/json.", "invalid_json")
    found = max(error.errors(), key=lambda e: len(e["loc"]))
    path = _path(found["loc"][1:], error.body)
    kind = found["type"]
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        path.append(found["ctx"]["discriminator"].strip("'"))
    param = ".".join(path) or None
    if kind == "extra_forbidden":
        message = f"Unknown parameter: {param!r}."
        return Problem(400, message, "unknown_parameter", param)
    if kind == "missing":
        missing = str(found["loc"][-1])
        if not path or path[-1] != missing:
            param = ".".join([*path, missing]) if missing != "body" else None
        return Problem(400, f"Missing parameter: {param!r}." if param else "The body is missing.", "missing", param)
    message = found["msg"].removeprefix("Value error, ")
    got = reprlib.repr(found["input"])
    return Problem(400, f"Invalid {param or 'body'}: {message}, got {got}.", "invalid_value", param)


def _path(location: Sequence[Any], body: Any) -> list[str]:
    """The location's steps that exist in the body: pydantic's names of union branches are left out."""
    path: list[str] = []
    for step in location:
        inside = (isinstance(body, dict) and step in body) or (
            isinstance(body, list) and isinstance(step, int) and step < len(body)
        )
        if inside:
            path.append(str(step))
            body = body[step]
    return path
