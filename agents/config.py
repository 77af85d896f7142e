"""Section `[agent]` of lectern.toml. Imports nothing heavy: every command reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from agents.limits import Budget


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """The agent that `lectern ask`, `chat` and `serve` use where nothing else is said.

    Attributes:
        name: its name, and its model name on the server.
        instructions: what it is told about its task.
        collections: what it answers from.
        tools: names of installed tools that it may use beside its searches.
        mode: "quote" answers with sentences of the documents; "write" lets the model write, with citations.
        model: a chat model's name; None: the one of `[models]`.
        budget: the most that one run may use.
    """

    name: str = "assistant"
    instructions: str = ""
    collections: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    mode: Literal["quote", "write"] = "quote"
    model: str | None = None
    budget: Budget = field(default_factory=Budget)
