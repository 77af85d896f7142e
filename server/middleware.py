"""Around the app, outermost first: log, host, intake. Pure ASGI, so that a stream passes through untouched."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from framework.errors import Busy, LecternError, TooLarge
from server.config import is_loopback
from server.errors import BodyTimeout, Misdirected, Problem, Stopping, problem_of
from server.streaming import ClientGone

logger = logging.getLogger("lectern.access")
failures = logging.getLogger("lectern.server")
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Log:
    """Names the request, answers what nothing else did, and writes one line about it: sizes and times, no contents."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        name = given if REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        began, status, sent = time.perf_counter(), 0, 0

        async def count(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", name.encode())]}
            sent += len(message.get("body", b""))
            await send(message)

        outcome, problem = await self._attempt(scope, receive, count)
        if problem is not None and not status:
            await _send_problem(count, problem)
        line = {
            "request_id": name,
            "method": scope["method"],
            "path": scope["path"][:200],
            "status": status,
            "outcome": outcome,
            "bytes": sent,
            "ms": round((time.perf_counter() - began) * 1000, 1),
        }
        logger.info("request", extra={"fields": line})

    async def _attempt(self, scope: Scope, receive: Receive, send: Send) -> tuple[str, Problem | None]:
        """Run the app; tells how it ended, and what is still to be answered."""
        try:
            await self.app(scope, receive, send)
        except ClientGone:
            return "client gone", None
        except asyncio.CancelledError:  # only a stopping server cancels from outside, and the task ends here anyway
            return "stopped", problem_of(Stopping("The server is stopping."))
        except LecternError as error:
            return "refused", problem_of(error)
        except Exception as error:  # noqa: BLE001  the last resort: the caller gets a plain 500
            failures.exception("a request failed")
            return "failed", problem_of(error)
        return "done", None


class HostGuard:
    """Refuses requests that name another host, so that no web page reaches this server through a name of its own.

    Args:
        names: host names that are answered; None: any. `/internal` is for loopback names and loopback clients alone.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str] | None) -> None:
        self.app = app
        self.names = None if names is None else {*LOOPBACK, *(name.strip("[]").lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self._check(scope)
        await self.app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        header = Headers(scope=scope).get("host", "")
        name = header[1:].partition("]")[0] if header.startswith("[") else header.partition(":")[0]
        internal = scope["path"].startswith("/internal")
        if internal and scope["client"] and not is_loopback(scope["client"][0]):
            raise Misdirected("/internal is for this machine's own commands.")
        names = set(LOOPBACK) if internal else self.names
        if names is not None and name.lower() not in names:
            raise Misdirected(
                f"This server does not answer for the host {header[:100]!r}.",
                hint="Use its address, or name the host in server.allowed_hosts.",
            )


class Gate:
    """Counts the requests that are here, and lets a number of those that compute run while others wait."""

    def __init__(self, concurrent: int, waiting: int) -> None:
        self.slots = asyncio.Semaphore(concurrent)
        self.most = concurrent + waiting
        self.inside = 0
        self.present = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @contextmanager
    def counted(self) -> Iterator[None]:
        self.present += 1
        self._empty.clear()
        try:
            yield
        finally:
            self.present -= 1
            if not self.present:
                self._empty.set()

    async def emptied(self, seconds: float) -> None:
        """Wait until no request is here, so that what they use can be closed."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), seconds)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Raises: Busy: as many are inside as may."""
        if self.inside >= self.most:
            raise Busy(f"{self.inside} requests are running or waiting, which is the limit.", hint="Try again later.")
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1


class Intake:
    """Takes a request in whole and within limits, then runs the app until it is done or its client is gone.

    Requests that compute (POST below /v1) pass the gate: counted before their body is read, so that waiting bodies
    are bounded too, and run when a slot is free.
    """

    def __init__(self, app: ASGIApp, gate: Gate, max_body: int, body_timeout: float, stall_timeout: float) -> None:
        self.app = app
        self.gate = gate
        self.max_body = max_body
        self.body_timeout = body_timeout
        self.stall_timeout = stall_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        computes = scope["method"] == "POST" and scope["path"].startswith("/v1/")
        with self.gate.counted(), self.gate.admitted() if computes else nullcontext():
            replay = _replay(await self._body(scope, receive))
            patient = self._patient(send)

            async def run() -> None:
                async with self.gate.slots if computes else nullcontext():
                    await self.app(scope, replay, patient)

            await _until_gone(run(), receive)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The body. One that is too large is read on and dropped: closing on a client that still sends would lose the
        answer on the way."""
        declared = Headers(scope=scope).get("content-length", "")
        size, announced = 0, int(declared) if declared.isdecimal() else 0
        body = bytearray()
        try:
            async with asyncio.timeout(self.body_timeout):
                async for part in _parts(receive):
                    size += len(part)
                    if max(size, announced) > self.max_body:
                        body.clear()
                    else:
                        body += part
        except TimeoutError:
            if max(size, announced) <= self.max_body:
                raise BodyTimeout(f"The body did not arrive within {self.body_timeout:g} seconds.") from None
        if max(size, announced) > self.max_body:
            raise TooLarge(
                f"The body has {max(size, announced)} bytes; {self.max_body} are allowed.",
                hint="Send less at a time, or raise server.max_body.",
            )
        return bytes(body)

    def _patient(self, send: Send) -> Send:
        stalled = False

        async def patient(message: Message) -> None:
            nonlocal stalled
            if not stalled:
                try:
                    async with asyncio.timeout(self.stall_timeout):
                        return await send(message)
                except TimeoutError:
                    stalled = True
            raise ClientGone(f"The client read nothing for {self.stall_timeout:g} seconds.")

        return patient


async def _parts(receive: Receive) -> AsyncGenerator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("The client left before its request was whole.")
        yield message.get("body", b"")
        if not message.get("more_body"):
            return


def _replay(body: bytes) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await asyncio.Future()  # the client's leaving cancels the work instead
        raise AssertionError("unreachable")

    return receive


async def _until_gone(run: Coroutine[None, None, None], receive: Receive) -> None:
    """Run to the end, or cancel the work as soon as the client closes its connection."""
    work = asyncio.ensure_future(run)
    gone = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientGone("The client closed the connection.")
        work.result()
    finally:
        gone.cancel()
        work.cancel()
        await asyncio.wait((work, gone))
        if not work.cancelled():
            work.exception()  # taken note of: what fails while it is being cancelled has nobody to tell


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_problem(send: Send, problem: Problem) -> None:
    headers = {"content-type": "application/json", "content-length": str(len(problem.json)), **problem.headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": raw})
    await send({"type": "http.response.body", "body": problem.json})
