"""What the nodes of a run work with, beside the state."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from agents.citations import Shelf
from agents.config import QuotingConfig, ReadingConfig
from agents.events import StopReason
from agents.limits import Budget
from agents.state import Run
from framework.errors import Conflict, ModelUnavailable
from framework.messages import ToolSpec
from framework.models.base import ChatModel, Role, in_role
from tools import Executor

Mode: TypeAlias = Literal["auto", "read", "quote", "write"]
Manner: TypeAlias = Literal["read", "quote", "write"]
UNREAD = "The passages were quoted, not read:"
UNTRAINED = "The model had to do without what it was trained to call tools with:"


@dataclass(frozen=True, slots=True)
class Deps:
    """The agent as its nodes see it; none of it is stored.

    Attributes:
        shelves: by the name of the search tool, the collection that its hits stand in.
        model: gives the chat model, loading it when first asked.
        deadline: `time.monotonic()` value at which the run's seconds are used up.
    """

    name: str
    instructions: str
    mode: Mode
    budget: Budget
    tenant: str
    executor: Executor
    shelves: Mapping[str, Shelf]
    model: Callable[[], Awaitable[ChatModel]]
    quoting: QuotingConfig
    reading: ReadingConfig = ReadingConfig()  # noqa: RUF009  frozen
    thread_id: str = ""
    deadline: float = math.inf
    _settled: list[tuple[Manner, str]] = field(default_factory=list, init=False, repr=False)  # once a run

    async def manner(self) -> Manner:
        """How the run answers; without knowledge there is nothing to read or quote, and the model writes.

        Raises:
            CallerError: there is no such model.
        """
        if not self._settled:
            self._settled.append(await self._settle())
        return self._settled[0][0]

    async def remarks(self, run: Run) -> tuple[str, ...]:
        """What could not be used for a run that ends now, and what was done in its place."""
        await self.manner()
        called = run.usage.completion_tokens > 0 and bool(self.other_tools) and not run.citations
        try:
            if called:
                await self._trained("caller")
        except Conflict as error:
            return self._settled[0][1], f"{UNTRAINED} {error}"
        return (self._settled[0][1],)

    async def reader(self) -> ChatModel:
        """What reads the passages: the model as it was trained for that, or as it is.

        Raises:
            Conflict: what it was trained to is deactivated or refused.
        """
        return await self._trained("reader") or await self.model()

    async def caller(self) -> ChatModel | None:
        """What calls the tools that are no searches by itself; None where there are none, or nothing trained to."""
        with suppress(Conflict):  # `remarks` tells of it
            return await self._trained("caller") if self.other_tools else None
        return None

    async def writer(self, run: Run) -> ChatModel:
        """What wrote the run's answer."""
        if run.calling or not self.shelves:
            return await self.caller() or await self.model()
        reads = not run.chosen and await self.manner() == "read"
        return await (self.reader() if reads else self.model())

    async def _settle(self) -> tuple[Manner, str]:
        """The manner; where it is not what the mode promises, why."""
        if not self.shelves:
            return "write", ""
        if self.mode != "auto":
            return self.mode, ""
        try:
            await self.model()
        except ModelUnavailable as error:  # quoting needs none
            return "quote", f"{UNREAD} {error}"
        try:
            return "read" if await self._trained("reader") else "quote", ""
        except Conflict as error:
            return "quote", f"{UNREAD} {error}"

    async def _trained(self, role: Role) -> ChatModel | None:
        model = await self.model()
        return await asyncio.to_thread(in_role, model, role)

    async def guided(self) -> bool:
        """Whether the model has to be led to its tool calls."""
        return bool(getattr(await self.model(), "guided", False))

    @property
    def other_tools(self) -> tuple[ToolSpec, ...]:
        """The tools that are no searches of knowledge."""
        return tuple(spec for spec in self.executor.toolset.specs if spec.name not in self.shelves)

    def spent(self, run: Run, prompt_tokens: int) -> StopReason | None:
        """The limit that leaves no room for another turn of the model."""
        if run.steps >= self.budget.steps:
            return "steps"
        if self.budget.tokens - run.usage.total_tokens - prompt_tokens < 1:
            return "tokens"
        return "seconds" if self.time_left() <= 0 else None

    def room(self, run: Run, prompt_tokens: int, model: ChatModel) -> int:
        """The most tokens that the model may write, by budget and context."""
        left = min(self.budget.tokens - run.usage.total_tokens, model.context_length) - prompt_tokens
        return max(1, min(left, self.budget.turn_tokens))

    def time_left(self) -> float:
        return self.deadline - time.monotonic()
