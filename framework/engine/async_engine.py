"""One engine, any number of event loops: a thread that steps it, and a bounded stream of events for every request.

The thread alone touches the engine. Requests, cancellations and readers that have caught up reach it as orders in a
queue; events reach a reader through a buffer of its own. A full buffer pauses its sequence, so a reader that stalls
costs a bounded amount of memory and holds up nobody else. With nothing to do the thread sleeps until an order comes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeAlias

from framework.engine.sequence import FinishReason, Request, Sequence, Status
from framework.engine.statistics import Recorder, Statistics
from framework.errors import LecternError, ModelUnavailable

if TYPE_CHECKING:
    from framework.engine.scheduler import Event

BUFFER = 64  # events that may wait for a reader
CHECK_AFTER = 1000  # steps after which an engine that becomes idle checks itself
logger = logging.getLogger("lectern.engine")


class Engine(Protocol):
    """What the thread steps: `LLMEngine`."""

    @property
    def has_work(self) -> bool:
        """A step would do something; sequences that are paused need none."""
        ...

    @property
    def blocks_used(self) -> int: ...

    @property
    def blocks_total(self) -> int: ...

    def add(self, request: Request) -> Sequence: ...

    def cancel(self, sequence: Sequence, finish: FinishReason = ...) -> None: ...

    def pause(self, sequence: Sequence, paused: bool) -> None: ...

    def step(self) -> list[Event]: ...

    def idle(self) -> None: ...

    def close(self) -> None: ...


Order: TypeAlias = Callable[[Engine], None]


class EngineFailure(LecternError):
    """A step failed for a reason that is nobody's request."""

    code = "engine_failure"


class AsyncEngine:
    """Requests in, events out, from any thread's event loop.

    The engine is made by `factory`, in the thread, when the first request comes. A failure to make it reaches all
    requests that wait, and the next request tries again.

    Args:
        factory: makes the engine; what it raises becomes `ModelUnavailable`.
        name: the model's, for messages.
        buffer: events that may wait for a reader.
    """

    def __init__(self, factory: Callable[[], Engine], name: str, buffer: int = BUFFER) -> None:
        self.name = name
        self._factory = factory
        self._buffer = buffer
        self._news = threading.Condition()  # guards what follows, and is told of every change to it
        self._orders: list[Order] = []
        self._readers: dict[_Reader, None] = {}
        self._thread: threading.Thread | None = None  # the one that serves; `_last` may be about to end
        self._last: threading.Thread | None = None
        self._engine: Engine | None = None
        self._draining = False
        self._closed = False
        self._by_sequence: dict[Sequence, _Reader] = {}  # the thread's own
        self._recorder = Recorder()
        self._process = os.getpid()

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        """The request's events, the last of them with its `finish`. Closing the iterator cancels the request.

        After `satisfied(request)` closing it counts as a finished answer.

        Raises:
            ModelUnavailable: the engine can't be made, or was closed.
            CallerError: the request can't be served, or its grammar or adapter failed.
            Busy: as many requests wait as may.
        """
        reader = _Reader(request, self._buffer)
        self._take_in(reader)
        try:
            while True:
                event = await reader.take()
                if reader.caught_up:
                    self._order(partial(self._resume, reader))
                yield event
                if event.finish is not None:
                    return
        finally:
            if not reader.ended:
                self._order(partial(self._cancel, reader))

    def satisfied(self, request: Request) -> None:
        """Its reader has all that it wanted, such as the text up to a stop string, and will close the iterator."""
        with self._news:
            for reader in self._readers:
                if reader.request is request:
                    reader.finish = "stop"

    def check_process(self) -> None:
        """Refuse to work in a child that was forked: it has the engine's memory, but none of its threads.

        Raises:
            ModelUnavailable: this process did not make the engine.
        """
        if os.getpid() != self._process:
            raise ModelUnavailable(
                f"{self.name} was loaded before this process was forked, and can't be used in it.",
                hint="Load it in the process that uses it, or start processes by 'spawn'.",
            )

    def start(self) -> None:
        """Begin to make the engine, for a request that is about to come; does nothing where it is made or closed."""
        with self._news:
            if not self.closed:
                self._begin()

    async def drain(self, seconds: float) -> bool:
        """Take no more requests, let those that are here finish for so long, and close; whether all could."""
        with self._news:
            self._draining = True
            thread = self._thread
            self._news.notify()
        if thread is not None:
            await asyncio.to_thread(thread.join, seconds)
        with self._news:
            finished = not self._readers
        await asyncio.to_thread(self.close)
        return finished

    def close(self) -> None:
        """End all requests with an error, now. Returns when the thread has ended, after its present step."""
        with self._news:
            self._closed = True
            thread = self._last
            left = self._clear()
            self._news.notify()
        _end(left, lambda: self._unavailable("was closed before it answered"))
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    @property
    def closed(self) -> bool:
        return self._closed or self._draining

    def statistics(self) -> Statistics:
        """The figures now; from any thread."""
        with self._news:
            present = len(self._readers)
            sequences = [reader.sequence for reader in self._readers if reader.sequence is not None]
            engine = self._engine
        blocks = (engine.blocks_used, engine.blocks_total) if engine is not None else (0, 0)
        return self._recorder.snapshot(sequences, present, blocks)

    def _take_in(self, reader: _Reader) -> None:
        self.check_process()
        with self._news:
            if self.closed:
                raise self._unavailable("was closed")
            self._readers[reader] = None
            self._orders.append(partial(self._add, reader))
            self._begin()
            self._news.notify()

    def _begin(self) -> None:
        if self._thread is None:
            self._thread = self._last = threading.Thread(target=self._run, name=f"engine {self.name}", daemon=True)
            self._thread.start()

    def _order(self, order: Order) -> None:
        with self._news:
            if self._thread is not None:
                self._orders.append(order)
                self._news.notify()

    def _clear(self) -> list[_Reader]:
        """Forget all requests, with the lock held; returns whom to tell."""
        readers = list(self._readers)
        self._readers.clear()
        self._orders.clear()
        return readers

    def _unavailable(self, what: str) -> ModelUnavailable:
        return ModelUnavailable(f"{self.name} {what}.", hint="Load it again.")

    # What follows runs in the thread.

    def _run(self) -> None:
        try:
            engine = self._factory()
        except Exception as error:  # noqa: BLE001  the thread's boundary: whoever waits is told, whatever it was
            self._leave(partial(_load_error, self.name, error))
            return
        with self._news:
            self._engine = engine
        try:
            self._serve(engine)
        except Exception:  # the thread's boundary: the engine contradicts itself, so the next request gets a new one
            logger.exception("the engine failed and is dropped", extra={"fields": {"model": self.name}})
        self._leave(_failure)
        engine.close()

    def _leave(self, error: Callable[[], LecternError]) -> None:
        """End the thread. Requests are left over only where something failed."""
        with self._news:
            self._engine = self._thread = None
            self._by_sequence.clear()
            left = self._clear()
        _end(left, error)

    def _serve(self, engine: Engine) -> None:
        steps = 0
        while (orders := self._awaited(engine)) is not None:
            for order in orders:
                order(engine)
            if engine.has_work:
                self._step(engine)
                steps += 1
            if steps >= CHECK_AFTER and not engine.has_work:
                engine.idle()
                steps = 0

    def _awaited(self, engine: Engine) -> list[Order] | None:
        """The orders that came, after a sleep where there is nothing to do; None: the end has come."""
        with self._news:
            while not (self._orders or engine.has_work or self._at_end):
                self._news.wait()
            orders, self._orders = self._orders, []
            return None if self._at_end else orders

    @property
    def _at_end(self) -> bool:
        return self._closed or (self._draining and not self._readers)

    def _add(self, reader: _Reader, engine: Engine) -> None:
        try:
            reader.sequence = engine.add(reader.request)
        except LecternError as error:
            self._forget(reader)
            reader.events.append(error)
            _wake([reader])
        else:
            self._by_sequence[reader.sequence] = reader

    def _cancel(self, reader: _Reader, engine: Engine, failed: bool = False) -> None:
        sequence = reader.sequence
        self._forget(reader)
        if sequence is not None and self._by_sequence.pop(sequence, None) is not None:
            engine.cancel(sequence, reader.finish)
            self._recorder.ended(sequence, failed)

    def _resume(self, reader: _Reader, engine: Engine) -> None:
        sequence = reader.sequence
        if sequence is not None and sequence in self._by_sequence and reader.paused:
            reader.paused = False
            engine.pause(sequence, False)

    def _forget(self, reader: _Reader) -> None:
        with self._news:
            self._readers.pop(reader, None)

    def _step(self, engine: Engine) -> None:
        try:
            events = engine.step()
        except Exception:  # the boundary between a step and the engine's life: a defect ends the step's requests only
            logger.exception("a step failed", extra={"fields": {"model": self.name}})
            self._drop_running(engine)
            return
        self._recorder.generated(sum(len(event.tokens) for event in events))
        for error in {event.error for event in events}:
            if error is not None and not isinstance(error, LecternError):
                logger.error("requests failed", exc_info=error, extra={"fields": {"model": self.name}})
        taken = [reader for event in events if (reader := self._hand_over(event, engine)) is not None]
        for reader in _wake(taken):
            self._cancel(reader, engine)

    def _hand_over(self, event: Event, engine: Engine) -> _Reader | None:
        """Put an event into its reader's buffer; None: the reader has left."""
        reader = self._by_sequence.get(event.sequence)
        if reader is None:
            return None
        error = event.error
        reader.events.append(event if error is None else error if isinstance(error, LecternError) else _failure())
        if event.finish is not None:
            del self._by_sequence[event.sequence]
            self._forget(reader)
            self._recorder.ended(event.sequence, event.error is not None)
        elif reader.full and not reader.paused:
            reader.paused = True
            engine.pause(event.sequence, True)
            if reader.caught_up:  # it was emptied before it saw that it is paused, and would never tell
                self._resume(reader, engine)
        return reader

    def _drop_running(self, engine: Engine) -> None:
        """End the requests that the failed step may have been about: those that run, or else all."""
        live = dict(self._by_sequence)
        running = {s: reader for s, reader in live.items() if s.status is Status.RUNNING} or live
        for reader in running.values():
            self._cancel(reader, engine, failed=True)
        _end(running.values(), _failure)


class _Reader:
    """Where one request's events wait, between the engine's thread and the loop that reads them.

    Attributes:
        sequence: None until the engine has taken the request in.
        paused: the sequence is; written by the engine's thread.
        ended: the last event, or an error, was taken.
        finish: how the sequence ends if the reader leaves.
    """

    def __init__(self, request: Request, limit: int) -> None:
        self.request = request
        self.loop = asyncio.get_running_loop()
        self.events: deque[Event | Exception] = deque()
        self.sequence: Sequence | None = None
        self.paused = False
        self.ended = False
        self.finish: FinishReason = "cancelled"
        self._limit = limit
        self._waiter: asyncio.Future[None] | None = None

    @property
    def full(self) -> bool:
        return len(self.events) >= self._limit

    @property
    def caught_up(self) -> bool:
        """It is paused, and half of its buffer is free again."""
        return self.paused and len(self.events) <= self._limit // 2

    async def take(self) -> Event:
        """The next event.

        Raises:
            Exception: what ended the request instead.
        """
        while not self.events:
            self._waiter = self.loop.create_future()
            await self._waiter
        event = self.events.popleft()
        if isinstance(event, Exception):
            self.ended = True
            raise event
        self.ended = event.finish is not None
        return event

    def wake(self) -> None:
        """Called on the reader's loop."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _wake(readers: Iterable[_Reader]) -> list[_Reader]:
    """Let readers see what came, with one call a loop; returns those whose loop was closed: nobody reads there."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Reader]] = {}
    for reader in readers:
        by_loop.setdefault(reader.loop, []).append(reader)
    gone: list[_Reader] = []
    for loop, waiting in by_loop.items():
        try:
            loop.call_soon_threadsafe(_wake_all, waiting)
        except RuntimeError:
            gone += waiting
    return gone


def _wake_all(readers: list[_Reader]) -> None:
    for reader in readers:
        reader.wake()


def _end(readers: Iterable[_Reader], error: Callable[[], Exception]) -> None:
    """Tell each of these, with an error of its own."""
    told = list(readers)
    for reader in told:
        reader.events.append(error())
    _wake(told)


def _load_error(name: str, error: Exception) -> ModelUnavailable:
    if isinstance(error, LecternError):
        return ModelUnavailable(error.message, hint=error.hint, field=error.field)
    return ModelUnavailable(f"{name} can't be loaded: {type(error).__name__}: {str(error)[:500]}")


def _failure() -> EngineFailure:
    return EngineFailure("The engine failed at this request; the log has the details.", hint="Try again.")
