"""`POST /internal/{operation}`: this machine's own commands, while the server holds the embedded store.

Newline-delimited JSON comes back: `{"progress": ...}` lines, then `{"result": ...}` or `{"error": ...}`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncGenerator
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Response

from framework.errors import LecternError
from indexers.loopback import run_operation
from indexers.report import Progress
from server.errors import Unauthorized
from server.routes.json_route import JsonRoute
from server.routes.responses import ERRORS
from server.state import ServerState, State
from server.streaming import LineStream

logger = logging.getLogger("lectern.server")


def authorize(state: State, authorization: Annotated[str, Header()] = "") -> None:
    """The token of `server.json`, compared in constant time."""
    if not secrets.compare_digest(authorization.encode(), f"Bearer {state.token}".encode()):
        raise Unauthorized("The token is missing or wrong.", hint="It stands in server.json, in the state directory.")


router = APIRouter(
    prefix="/internal", tags=["internal"], route_class=JsonRoute, responses=ERRORS, dependencies=[Depends(authorize)]
)

LINES = {"description": "Progress lines, then a result or an error.", "content": {"application/x-ndjson": {}}}


class CallerLeft(LecternError):
    """Whoever asked for the work is gone; it ends at its next report."""


class Work:
    """One operation in a thread, and the latest that it reported: progress that nobody read yet is replaced."""

    def __init__(self, state: ServerState, operation: str, arguments: dict[str, Any]) -> None:
        self._workers = state.workers
        self._call = partial(run_operation, state.library, operation, arguments, self._report)
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._latest: Progress | None = None
        self._left = False

    async def lines(self) -> AsyncGenerator[bytes]:
        """Progress as it comes, then the outcome. Left early, it stops the work and waits for its end."""
        done = self._loop.run_in_executor(self._workers, self._call)
        done.add_done_callback(lambda _: self._news.set())
        try:
            while not done.done():
                await self._news.wait()
                self._news.clear()
                latest, self._latest = self._latest, None
                if latest is not None:
                    yield _line("progress", asdict(latest))
            yield _outcome(done)
        finally:
            self._left = True
            await asyncio.wait((done,))
            if not done.cancelled():
                done.exception()  # taken note of: what fails when the caller is gone has nobody to tell

    def _report(self, progress: Progress) -> None:
        """Called in the working thread."""
        if self._left:
            raise CallerLeft("The caller is gone.")
        self._latest = progress
        self._loop.call_soon_threadsafe(self._news.set)


def _outcome(done: asyncio.Future[Any]) -> bytes:
    try:
        return _line("result", done.result())
    except LecternError as error:
        what = {"type": type(error).__name__, "message": error.message, "hint": error.hint, "field": error.field}
        return _line("error", what)
    except Exception:
        logger.exception("an internal operation failed")
        message = "The server failed to do this; its log has the details."
        return _line("error", {"type": "OperatorError", "message": message, "hint": "", "field": None})


def _line(kind: str, value: Any) -> bytes:
    return json.dumps({kind: value}, default=str).encode("ascii") + b"\n"


@router.post("/{operation}", summary="Run an operation on the embedded store", responses={200: LINES})
async def run(operation: str, arguments: dict[str, Any], state: State) -> Response:
    """For `lectern index`, `lectern search` and their kin; the names and arguments are those of the library."""
    return LineStream(Work(state, operation, arguments).lines())
