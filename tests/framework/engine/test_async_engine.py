"""The thread and the streams around an engine. The scheduler is the real one, the model a function of known tokens."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from framework.engine import async_engine
from framework.engine.adapter import Adapter
from framework.engine.async_engine import AsyncEngine, EngineFailure
from framework.engine.llm_engine import LLMEngine
from framework.engine.scheduler import Batch, EngineLimits, Event
from framework.engine.sequence import Request, SampledToken, SamplingParams
from framework.engine.sequence import Sequence as Running
from framework.errors import Busy, CallerError, ModelUnavailable, OperatorError

LIMITS = EngineLimits(blocks=512, context_length=4096, max_sequences=32, max_waiting=2000, block_size=16)


class Model:
    """Runner and sampler in one: the next token is a sum over those known, and over the adapter that is resident.

    Attributes:
        gate: each forward pass takes one of it, where there is one.
        fails: raised by the next forward pass.
    """

    def __init__(self) -> None:
        self.gate: threading.Semaphore | None = None
        self.stepped = threading.Event()
        self.fails: Exception | None = None
        self.resident: dict[int, str] = {}

    def load(self, slot: int, adapter: Adapter) -> None:
        self.resident[slot] = adapter.digest

    def forward(self, batch: Batch) -> Any:
        self.stepped.set()
        if self.gate is not None:
            assert self.gate.acquire(timeout=20)
        if self.fails is not None:
            error, self.fails = self.fails, None
            raise error

    def sample(self, logits: Any, sequences: Sequence[Running], masks: Any) -> list[SampledToken | Exception]:
        return [SampledToken(self.next(s.tokens, self.resident.get(s.slot, ""))) for s in sequences]

    @staticmethod
    def next(tokens: list[int], digest: str = "") -> int:
        return (31 * sum(tokens) + 7 * len(tokens) + sum(map(ord, digest))) % 997 + 1


class Watched(LLMEngine):
    """An engine that counts its self-checks, and whose next step fails where `defect` is set."""

    def __init__(self, model: Model, limits: EngineLimits = LIMITS) -> None:
        super().__init__(model, model, limits)
        self.model = model
        self.checks = 0
        self.defect: Exception | None = None

    def step(self) -> list[Event]:
        if self.defect is not None:
            error, self.defect = self.defect, None
            raise error
        return super().step()

    def idle(self) -> None:
        self.checks += 1
        super().idle()


class Bench:
    """An asynchronous engine and what is inside it."""

    def __init__(self, limits: EngineLimits = LIMITS, buffer: int = 8) -> None:
        self.model = Model()
        self.inside = Watched(self.model, limits)
        self.engine = AsyncEngine(lambda: self.inside, "toy", buffer)

    async def tokens(self, request: Request) -> list[int]:
        return [token async for token in read(self.engine.generate(request))]

    async def settled(self) -> None:
        """Return when all that was ordered before is done: orders are followed in turn."""
        await self.tokens(ask(1, 1))


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await asyncio.to_thread(bench.engine.close)


async def read(events: AsyncGenerator[Event]) -> AsyncGenerator[int]:
    async with aclosing(events):
        async for event in events:
            for sampled in event.tokens:
                yield sampled.token


def ask(first: int, count: int, **options: Any) -> Request:
    prompt = tuple(range(first, first + 5 + first % 40))
    return Request(prompt, SamplingParams(max_tokens=count), **options)


def alone(request: Request) -> list[int]:
    """What the model says, without any engine."""
    tokens = list(request.prompt)
    for _ in range(request.params.max_tokens):
        tokens.append(Model.next(tokens, request.adapter.digest if request.adapter else ""))
    return tokens[len(request.prompt) :]


async def test_64_streams_at_once_each_get_what_they_would_get_alone(bench: Bench) -> None:
    requests = [ask(i, 5 + i) for i in range(64)]
    assert await asyncio.gather(*map(bench.tokens, requests)) == [alone(request) for request in requests]
    figures = bench.engine.statistics()
    assert figures.total.finished == 64
    assert figures.total.generated_tokens == sum(5 + i for i in range(64))
    assert (figures.running, figures.waiting, figures.blocks_used) == (0, 0, 0)


def test_event_loops_in_several_threads_share_an_engine() -> None:
    bench, got = Bench(), {}

    def run(i: int) -> None:
        got[i] = asyncio.run(bench.tokens(ask(i, 30)))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    bench.engine.close()
    assert got == {i: alone(ask(i, 30)) for i in range(6)}


async def test_a_thousand_streams_left_by_their_readers_leave_nothing_behind(bench: Bench) -> None:
    await bench.settled()
    tasks, threads = len(asyncio.all_tasks()), threading.active_count()

    async def leave(i: int) -> None:
        stream = bench.engine.generate(ask(i, 500, adapter=Adapter(str(i % 3), Path())))
        for _ in range(i % 4):  # some leave before their first token, some before they ask
            await anext(stream)
        if i % 2:
            await stream.aclose()
            return
        waiting = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        await stream.aclose()

    for start in range(0, 1000, 100):
        await asyncio.gather(*(leave(i) for i in range(start, start + 100)))
    await bench.settled()
    figures = bench.engine.statistics()
    assert (figures.running, figures.waiting, figures.blocks_used) == (0, 0, 0)
    assert figures.total.cancelled > 500
    assert len(asyncio.all_tasks()) == tasks
    assert threading.active_count() == threads
    assert not bench.engine._by_sequence
    assert not bench.engine._readers
    bench.inside.idle()  # asserts that no block and no slot is held


async def test_a_reader_that_stalls_is_paused_and_nobody_waits_for_it(bench: Bench) -> None:
    stalled = bench.engine.generate(ask(3, 300))
    first = (await anext(stalled)).tokens[0].token
    assert await bench.tokens(ask(4, 200)) == alone(ask(4, 200))
    assert bench.engine.statistics().paused == 1
    (reader,) = bench.engine._readers
    assert 4 < len(reader.events) <= 8
    assert reader.sequence is not None
    assert reader.sequence.generated == 1 + len(reader.events)
    rest = [token async for token in read(stalled)]
    assert [first, *rest] == alone(ask(3, 300))


async def test_paused_requests_make_room_for_those_that_are_read() -> None:
    """The pool holds one long answer only; whoever stalls gives its blocks away and goes on later."""
    bench = Bench(EngineLimits(blocks=8, context_length=128, max_sequences=4))
    stalled = bench.engine.generate(ask(1, 100))
    first = (await anext(stalled)).tokens[0].token
    assert await bench.tokens(ask(2, 100)) == alone(ask(2, 100))
    assert [first, *[token async for token in read(stalled)]] == alone(ask(1, 100))
    await bench.engine.drain(5)


async def test_a_request_that_can_t_be_served_is_refused_at_once(bench: Bench) -> None:
    with pytest.raises(CallerError, match="5000 tokens"):
        await bench.tokens(Request(tuple(range(5000)), SamplingParams(max_tokens=1)))
    assert bench.engine.statistics().waiting == 0


async def test_a_full_queue_refuses_and_those_in_it_are_served() -> None:
    bench = Bench(EngineLimits(blocks=64, context_length=256, max_sequences=1, max_waiting=1))
    bench.model.gate = threading.Semaphore(0)
    served = [asyncio.create_task(bench.tokens(ask(1, 3)))]
    await asyncio.to_thread(bench.model.stepped.wait, 10)
    served.append(asyncio.create_task(bench.tokens(ask(2, 3))))
    await asyncio.sleep(0)
    refused = asyncio.create_task(bench.tokens(ask(3, 3)))
    await asyncio.sleep(0)
    bench.model.gate.release(100)
    with pytest.raises(Busy):
        await refused
    assert await asyncio.gather(*served) == [alone(ask(1, 3)), alone(ask(2, 3))]
    await bench.engine.drain(5)


async def test_a_request_cancelled_before_the_engine_saw_it_never_runs(bench: Bench) -> None:
    bench.model.gate = threading.Semaphore(0)
    first = asyncio.create_task(bench.tokens(ask(1, 2)))
    await asyncio.to_thread(bench.model.stepped.wait, 10)
    early = asyncio.create_task(bench.tokens(ask(2, 2)))
    await asyncio.sleep(0)
    early.cancel()
    await asyncio.wait([early])
    bench.model.gate.release(100)
    assert await first == alone(ask(1, 2))
    await bench.settled()
    cancelled = bench.engine.statistics().total
    assert (cancelled.cancelled, cancelled.finished) == (1, 2)
    assert cancelled.generated_tokens == 3


def test_readers_whose_loop_was_closed_are_cancelled() -> None:
    bench = Bench()
    loop = asyncio.new_event_loop()
    stream = bench.engine.generate(ask(1, 4000))
    loop.run_until_complete(anext(stream))
    loop.close()
    bench.model.stepped.clear()
    asyncio.run(bench.tokens(ask(2, 50)))
    figures = bench.engine.statistics()
    assert figures.blocks_used <= 1 + (40 + 8) // 16  # cancelled, or paused where its buffer was full already
    bench.engine.close()


async def test_draining_ends_what_runs_and_takes_nothing_new(bench: Bench) -> None:
    bench.model.gate = threading.Semaphore(0)
    running = [asyncio.create_task(bench.tokens(ask(i, 20))) for i in range(40)]  # more than run at once
    await asyncio.to_thread(bench.model.stepped.wait, 10)
    draining = asyncio.create_task(bench.engine.drain(20))
    await asyncio.sleep(0)
    with pytest.raises(ModelUnavailable, match="toy was closed"):
        await bench.tokens(ask(1, 1))
    bench.model.gate.release(10_000)
    assert await asyncio.gather(*running) == [alone(ask(i, 20)) for i in range(40)]
    assert await draining
    assert bench.engine._thread is None


async def test_draining_has_an_end_whoever_is_still_there(bench: Bench) -> None:
    stalled = bench.engine.generate(ask(1, 300))
    await anext(stalled)
    assert not await bench.engine.drain(0.01)
    with pytest.raises(ModelUnavailable, match="closed before it answered"):
        [token async for token in read(stalled)]


async def test_closing_under_load_ends_everyone_with_an_error(bench: Bench) -> None:
    bench.model.gate = threading.Semaphore(50)
    running = [asyncio.create_task(bench.tokens(ask(i, 1000))) for i in range(64)]
    await asyncio.to_thread(bench.model.stepped.wait, 10)
    closing = asyncio.create_task(asyncio.to_thread(bench.engine.close))
    ended = await asyncio.gather(*running, return_exceptions=True)
    bench.model.gate.release(10_000)
    await closing
    assert all(isinstance(error, ModelUnavailable) and "closed before" in str(error) for error in ended)
    assert bench.engine._thread is None
    with pytest.raises(ModelUnavailable, match="was closed"):
        await bench.tokens(ask(1, 1))


@pytest.mark.parametrize("error", [OperatorError("no such weights"), RuntimeError("no such weights")])
async def test_a_model_that_can_t_be_loaded_tells_all_who_wait_and_is_tried_again(error: Exception) -> None:
    bench, go, tries = Bench(), threading.Event(), 0

    def factory() -> LLMEngine:
        nonlocal tries
        tries += 1
        assert go.wait(10)
        if tries == 1:
            raise error
        return bench.inside

    engine = AsyncEngine(factory, "toy")
    waiting = [asyncio.create_task(collect(engine.generate(ask(i, 2)))) for i in range(5)]
    await asyncio.sleep(0)
    go.set()
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, ModelUnavailable)
        assert "no such weights" in str(outcome)
    assert await collect(engine.generate(ask(1, 2))) == alone(ask(1, 2))
    assert tries == 2
    await engine.drain(5)


async def collect(events: AsyncGenerator[Event]) -> list[int]:
    return [token async for token in read(events)]


async def test_a_forward_pass_that_fails_ends_its_requests_and_the_next_ones_are_served(bench: Bench) -> None:
    bench.model.fails = RuntimeError("out of memory")
    with pytest.raises(EngineFailure, match="log has the details"):
        await bench.tokens(ask(1, 5))
    assert await bench.tokens(ask(1, 5)) == alone(ask(1, 5))
    assert bench.engine.statistics().total.failed == 1
    assert bench.engine.statistics().blocks_used == 0


async def test_a_step_that_fails_by_a_defect_ends_those_who_run_and_is_logged(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.settled()
    bench.model.gate = threading.Semaphore(1)
    bench.model.stepped.clear()
    running = asyncio.create_task(bench.tokens(ask(1, 50)))
    await asyncio.to_thread(bench.model.stepped.wait, 10)
    bench.inside.defect = ValueError("a defect")
    bench.model.gate.release(100)
    with pytest.raises(EngineFailure):
        await running
    assert await bench.tokens(ask(2, 5)) == alone(ask(2, 5))
    assert "a step failed" in caplog.text
    assert bench.inside.blocks_used == 0


async def test_an_engine_that_contradicts_itself_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_engine, "CHECK_AFTER", 3)
    made: list[Watched] = []

    def factory() -> LLMEngine:
        made.append(Watched(Model()))
        return made[-1]

    engine = AsyncEngine(factory, "toy")
    await collect(engine.generate(ask(1, 1)))
    made[0].scheduler.blocks.check = broken  # type: ignore[method-assign]
    thread = engine._thread
    assert thread is not None
    await collect(engine.generate(ask(1, 5)))
    await asyncio.to_thread(thread.join, 10)
    assert await collect(engine.generate(ask(2, 5))) == alone(ask(2, 5))
    assert len(made) == 2
    await engine.drain(5)


def broken(running: object) -> None:
    raise AssertionError("a block is held twice")


async def test_it_checks_itself_once_after_a_while_of_work(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_engine, "CHECK_AFTER", 20)
    for count in (30, 5, 5):
        await bench.tokens(ask(1, count))
    await asyncio.to_thread(bench.engine.close)
    assert bench.inside.checks == 1


async def test_two_models_run_in_one_process() -> None:
    one, other = Bench(), Bench()
    requests = [ask(i, 40) for i in range(20)]
    pairs = await asyncio.gather(*(asyncio.gather(one.tokens(r), other.tokens(r)) for r in requests))
    assert pairs == [[alone(r), alone(r)] for r in requests]
    assert await asyncio.gather(one.engine.drain(5), other.engine.drain(5)) == [True, True]


async def test_an_adapter_replaced_while_in_use_goes_on_for_those_who_began_with_it(bench: Bench) -> None:
    old, new = Adapter("old", Path("a")), Adapter("new", Path("a"))
    stream = bench.engine.generate(ask(1, 60, adapter=old))
    first = [(await anext(stream)).tokens[0].token for _ in range(3)]
    assert await bench.tokens(ask(1, 60, adapter=new)) == alone(ask(1, 60, adapter=new))
    assert await bench.tokens(ask(1, 60)) == alone(ask(1, 60))
    rest = [token async for token in read(stream)]
    assert first + rest == alone(ask(1, 60, adapter=old)) != alone(ask(1, 60, adapter=new))
    by_adapter = bench.engine.statistics().adapters
    assert Counter({digest: figures.finished for digest, figures in by_adapter.items()}) == {"old": 1, "new": 1}


async def test_tenants_share_no_prefix_and_the_statistics_show_what_is_shared(bench: Bench) -> None:
    long = tuple(range(160))

    async def cached(salt: str) -> int:
        before = bench.engine.statistics().total.cached_tokens
        await bench.tokens(Request(long, SamplingParams(max_tokens=2), salt=salt))
        return bench.engine.statistics().total.cached_tokens - before

    assert [await cached("a"), await cached("b")] == [0, 0]
    assert await cached("a") == 159
    assert bench.engine.statistics().total.cache_hit_rate == pytest.approx(159 / 480)
