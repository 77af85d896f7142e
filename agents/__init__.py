"""Agents: they search, call tools and answer with citations. `from agents import Agent` imports nothing heavy."""

from __future__ import annotations

from agents.agent import Agent
from agents.config import AgentConfig, QuotingConfig, ReadingConfig
from agents.events import (
    Answer,
    AnswerDelta,
    Event,
    RunFinished,
    RunStarted,
    StopReason,
    ThoughtDelta,
    ToolCalled,
    ToolReturned,
)
from agents.limits import Budget

__all__ = [
    "Agent",
    "AgentConfig",
    "Answer",
    "AnswerDelta",
    "Budget",
    "Event",
    "QuotingConfig",
    "ReadingConfig",
    "RunFinished",
    "RunStarted",
    "StopReason",
    "ThoughtDelta",
    "ToolCalled",
    "ToolReturned",
]
