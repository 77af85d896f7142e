"""Budgets: every run has one, and it always ends."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from framework.errors import CallerError
from framework.messages import ToolCall, canonical_json

SUPERSTEPS_A_STEP = 3  # think, act, observe
SUPERSTEPS_BESIDES = 8  # the first search, quoting, the answer, and what langgraph counts of its own


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that one run may use.

    Attributes:
        steps: turns of the model. Its last one is given no tools, so that it has to answer.
        tool_calls: calls made; further ones are refused, and the model gets one turn to answer without tools.
        tokens: prompt and completion tokens of all turns together.
        turn_tokens: completion tokens of one turn: a small model may repeat itself without end.
        seconds: wall-clock time. A run that is resumed after a crash starts this clock anew, and only this one.

    Raises:
        CallerError: a limit below 1 step, 0 calls, 1 token or 0 seconds, or one that is not finite.
    """

    steps: int = 8
    tool_calls: int = 12
    tokens: int = 20_000
    turn_tokens: int = 1024
    seconds: float = 120.0

    def __post_init__(self) -> None:
        for name, value, least in (
            ("steps", self.steps, 1),
            ("tool_calls", self.tool_calls, 0),
            ("tokens", self.tokens, 1),
            ("turn_tokens", self.turn_tokens, 1),
        ):
            if value < least:
                raise CallerError(f"budget.{name} must be {least} or more, got {value!r}.", field=f"budget.{name}")
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise CallerError(
                f"budget.seconds must be a finite number above 0, got {self.seconds!r}.", field="budget.seconds"
            )

    @property
    def recursion_limit(self) -> int:
        """langgraph's own limit, set so that ours is always reached first; its default is 10,007."""
        return SUPERSTEPS_A_STEP * self.steps + SUPERSTEPS_BESIDES


def identity(call: ToolCall) -> str:
    """Equal for calls of one tool with the same arguments, whatever their spelling as JSON."""
    try:
        arguments = canonical_json(json.loads(call.arguments))
    except (ValueError, RecursionError):
        arguments = call.arguments
    return f"{call.name} {arguments}"
