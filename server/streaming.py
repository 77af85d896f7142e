"""Server-sent events. An answer that has begun ends with `[DONE]`, after an error event where it failed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Generic, TypeVar

from fastapi.responses import Response
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from framework.errors import LecternError
from server.errors import Problem, Stopping, problem_of

T = TypeVar("T")
logger = logging.getLogger("lectern.server")
DONE = b"data: [DONE]\n\n"


class ClientGone(ConnectionError):
    """The client closed the connection, or stopped reading it for too long."""


class Begun(Generic[T]):
    """An iteration whose first item is already here, so that what fails at its start can still be a plain error."""

    def __init__(self, first: T, rest: AsyncGenerator[T]) -> None:
        self._first: list[T] = [first]
        self._rest = rest

    @classmethod
    async def of(cls, items: AsyncGenerator[T]) -> Begun[T]:
        return cls(await anext(items), items)

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        return self._first.pop() if self._first else await anext(self._rest)

    async def aclose(self) -> None:
        await self._rest.aclose()


class LineStream(Response):
    """Sends each line when the client took the one before; however it ends, the lines' work is closed."""

    media_type = "application/x-ndjson"

    def __init__(self, lines: AsyncGenerator[bytes]) -> None:
        super().__init__()
        del self.headers["content-length"]
        self.lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self.lines):
            async for line in self.lines:
                await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class EventStream(Response):
    """Sends each chunk when the client took the one before, so that one who reads slowly fills no buffer here.

    However it ends, by the last chunk, an error, a stopping server or a lost client, the chunks' work is closed.
    """

    media_type = "text/event-stream"

    def __init__(self, chunks: Begun[BaseModel]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        async with aclosing(self.chunks):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            try:
                async for chunk in self.chunks:
                    await write(b"data: " + chunk.model_dump_json(exclude_unset=True).encode() + b"\n\n")
            except ClientGone:
                raise
            except asyncio.CancelledError:
                await write(_error(problem_of(Stopping("The server is stopping; this answer is not finished."))))
                await write(DONE, more=False)
                raise
            except Exception as error:
                if not isinstance(error, LecternError):
                    logger.exception("an answer failed while it was streamed")
                await write(_error(problem_of(error)))
            await write(DONE, more=False)


def _error(problem: Problem) -> bytes:
    return b"event: error\ndata: " + problem.json + b"\n\n"
