"""What a run tells while it goes: typed events, in order, each complete in itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from framework.documents import Citation
from framework.messages import ToolCall, Usage
from tools.base import ToolResult

StopReason: TypeAlias = Literal[
    "answered", "declined", "steps", "tool_calls", "tokens", "seconds", "repeated_call", "cancelled"
]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a run ends with.

    Attributes:
        text: the answer, with markers like [1] that `citations` resolves by number.
        citations: checked: each quote stands at its span of the stored document version.
        supported: at least one citation backs the text. False for a declined answer, and for one written without
            knowledge.
        stop: why the run ended; everything but "answered" and "declined" is a budget or a cancellation.
        notices: what was cut, skipped or failed on the way, a sentence each.
    """

    text: str
    citations: tuple[Citation, ...] = ()
    supported: bool = False
    stop: StopReason = "answered"
    usage: Usage = field(default_factory=Usage)
    steps: int = 0
    tool_calls: int = 0
    notices: tuple[str, ...] = ()
    thread_id: str = ""
    run_id: str = ""


@dataclass(frozen=True, slots=True)
class RunStarted:
    run_id: str
    thread_id: str
    agent: str


@dataclass(frozen=True, slots=True)
class ThoughtDelta:
    """Text that the model writes before it calls a tool."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCalled:
    call: ToolCall
    step: int


@dataclass(frozen=True, slots=True)
class ToolReturned:
    call: ToolCall
    result: ToolResult
    seconds: float


@dataclass(frozen=True, slots=True)
class AnswerDelta:
    """The next piece of the answer; the pieces concatenate to `Answer.text`."""

    text: str


@dataclass(frozen=True, slots=True)
class RunFinished:
    answer: Answer


Event: TypeAlias = RunStarted | ThoughtDelta | ToolCalled | ToolReturned | AnswerDelta | RunFinished
