"""langgraph's SQLite checkpointer, whose writes are whole.

A run that is cancelled in the middle of a write would leave its transaction open, and with it the file locked for the
thread's next run. Here a write that has begun is always ended, and the connection is closed after the last of them.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointMetadata
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from framework.errors import OperatorError

T = TypeVar("T")


class WholeWrites(AsyncSqliteSaver):
    """Raises `OperatorError` where the file can't be written; `settle` before the connection is closed."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._under_way: set[asyncio.Task[Any]] = set()

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        return await self._whole(super().aput(config, checkpoint, metadata, new_versions))

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        await self._whole(super().aput_writes(config, writes, task_id, task_path))

    async def settle(self) -> None:
        """Wait for the writes that have begun; an error of theirs has no one left to hear it."""
        if self._under_way:
            await asyncio.shield(asyncio.gather(*self._under_way, return_exceptions=True))

    async def _whole(self, write: Coroutine[Any, Any, T]) -> T:
        task = asyncio.ensure_future(write)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        try:
            return await asyncio.shield(task)
        except sqlite3.DatabaseError as error:
            raise OperatorError(
                f"The thread can't be stored: {error}.", hint="Check the disk, and whether another program holds it."
            ) from error
