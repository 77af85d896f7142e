"""The one way from synchronous code into the asynchronous core."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Generator
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
CLEAN_UP_SECONDS = 5.0


class _Loop:
    """An event loop in a daemon thread, started when first used. One for the process, so that clients are reused."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="lectern-bridge", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def is_current(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False


class _End:
    """Follows the last item of an iteration."""


_LOOP = _Loop()
_NESTED = "A synchronous call was made inside asynchronous Lectern code; await the async form instead."


def run_sync(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end from synchronous code; an interrupt (Ctrl-C) cancels it.

    Works in a thread that runs an event loop of its own (a notebook) too, which it blocks meanwhile.

    Raises:
        RuntimeError: called on the bridge's own loop, where waiting would never end.
    """
    if _LOOP.is_current():
        work.close()
        raise RuntimeError(_NESTED)
    future = _LOOP.submit(work)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def iterate_sync(items: AsyncIterator[T]) -> Generator[T, None, None]:
    """An asynchronous iterator as a plain one. Leaving the loop early cancels its work.

    One task runs the iterator from its first item to its end, so time-outs and context variables inside it hold.
    """
    arrived: SimpleQueue[T | _End] = SimpleQueue()

    async def pump() -> None:
        try:
            async for item in items:
                arrived.put(item)
        finally:
            arrived.put(_End())

    if _LOOP.is_current():
        raise RuntimeError(_NESTED)
    work = _LOOP.submit(pump())
    try:
        while not isinstance(item := arrived.get(), _End):
            yield item
        work.result()
    finally:
        if work.cancel():
            with suppress(Empty):  # cancelled before its first step, it has nothing to close and sends no end
                while not isinstance(arrived.get(timeout=CLEAN_UP_SECONDS), _End):
                    pass
