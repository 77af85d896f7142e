from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from framework.bridge import iterate_sync, run_sync


async def count(log: list[str], items: int = 5) -> AsyncIterator[int]:
    try:
        async with asyncio.timeout(10):
            for i in range(items):
                yield i
                await asyncio.sleep(0)
    finally:
        log.append("closed")


def test_a_coroutine_runs_to_its_result() -> None:
    async def double(x: int) -> int:
        await asyncio.sleep(0)
        return 2 * x

    assert run_sync(double(21)) == 42


def test_iteration_gives_every_item_and_then_closes() -> None:
    log: list[str] = []
    assert list(iterate_sync(count(log))) == [0, 1, 2, 3, 4]
    assert log == ["closed"]


def test_leaving_the_loop_early_stops_the_work_before_it_returns() -> None:
    log: list[str] = []

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await asyncio.sleep(0.001)
        finally:
            log.append("closed")

    items = iterate_sync(endless())
    next(items)
    items.close()
    assert log == ["closed"]


def test_an_error_inside_reaches_the_caller() -> None:
    async def failing() -> AsyncIterator[int]:
        yield 1
        raise ValueError("inside")

    items = iterate_sync(failing())
    assert next(items) == 1
    with pytest.raises(ValueError, match="inside"):
        next(items)


async def test_a_running_loop_of_the_callers_own_is_no_obstacle() -> None:
    async def inner() -> int:
        return 7

    assert run_sync(inner()) == 7


def test_a_synchronous_call_inside_the_bridge_is_refused_instead_of_hanging() -> None:
    async def inner() -> int:
        return 7

    async def outer() -> int:
        return run_sync(inner())

    with pytest.raises(RuntimeError, match="await the async form"):
        run_sync(outer())
