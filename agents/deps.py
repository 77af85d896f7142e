"""What the nodes of a run work with, beside the state."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from agents.citations import Shelf
from agents.limits import Budget
from framework.messages import ToolSpec
from framework.models.base import ChatModel
from tools import Executor

Mode: TypeAlias = Literal["quote", "write"]


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
    thread_id: str = ""
    deadline: float = math.inf

    @property
    def quotes(self) -> bool:
        """Whether answers are quotations; without knowledge there is nothing to quote."""
        return self.mode == "quote" and bool(self.shelves)

    @property
    def offered(self) -> tuple[ToolSpec, ...]:
        """The tools that the model may choose from; a quoting agent searches by itself."""
        specs = self.executor.toolset.specs
        return tuple(spec for spec in specs if not (self.quotes and spec.name in self.shelves))

    @property
    def prompt(self) -> str:
        """Which file of agents/prompts instructs the model."""
        return "tools" if self.quotes else "write" if self.shelves else "plain"

    def time_left(self) -> float:
        return self.deadline - time.monotonic()
