"""Several iterations as one, each item as soon as it is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")


async def side_by_side(streams: Sequence[AsyncGenerator[T]]) -> AsyncGenerator[tuple[int, T]]:
    """Items with the place of the stream that they come from; no stream is ahead of the reader by more than one.

    Each stream runs in a task of its own from beginning to end. The first one that fails ends all; so does closing.
    """
    arrived: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue(1)

    async def run(place: int, stream: AsyncGenerator[T]) -> None:
        try:
            async with aclosing(stream):
                async for item in stream:
                    await arrived.put((place, item))
        except Exception as error:  # noqa: BLE001  handed to the reader, who raises it
            await arrived.put(error)
        else:
            await arrived.put(None)

    tasks = [asyncio.create_task(run(place, stream)) for place, stream in enumerate(streams)]
    left = len(tasks)
    try:
        while left:
            item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
