"""The one way from synchronous code into the asynchronous core."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


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


_LOOP = _Loop()


def run_sync(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end from synchronous code; an interrupt (Ctrl-C) cancels it.

    Works in a thread that runs an event loop of its own (a notebook) too, which it blocks meanwhile.

    Raises:
        RuntimeError: called on the bridge's own loop, where waiting would never end.
    """
    if _LOOP.is_current():
        work.close()
        raise RuntimeError(
            "A synchronous call was made inside asynchronous Lectern code; await the async form instead."
        )
    future = _LOOP.submit(work)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def iterate_sync(items: AsyncIterator[T]) -> Iterator[T]:
    """An asynchronous iterator as a plain one. Leaving the loop early closes it, which cancels its work."""

    async def following() -> T:
        return await anext(items)

    async def close() -> None:
        if isinstance(items, AsyncGenerator):
            await items.aclose()

    try:
        while True:
            try:
                item = run_sync(following())
            except StopAsyncIteration:
                return
            yield item
    finally:
        run_sync(close())
