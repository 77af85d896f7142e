"""One turn of the model: streamed as events while it is made, ended when the time is up."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from agents.citations import MarkerStream
from agents.events import AnswerDelta, Event, ThoughtDelta
from framework.messages import Completion, Delta, Message, ToolSpec, Usage, assemble
from framework.models.base import AUTO, ChatModel, Constraint, GenerationParams, ToolChoice

HOLD = 200
Emit = Callable[[Event], None]


class Speech:
    """Tells a model's text apart: a thought if a call follows, else a part of the answer.

    `HOLD` characters are held back while a call may still follow. Text that grew longer has been shown as answer and
    stays a part of it, so that the pieces shown always add up to the answer. `markers` None lets all brackets be. An
    answer that is `unsaid`, word for word, is not shown; as long as it may become that, it is held back.
    """

    def __init__(
        self,
        emit: Emit,
        markers: MarkerStream | None = None,
        *,
        calls_possible: bool = False,
        only_thought: bool = False,
        unsaid: str = "",
    ) -> None:
        self.shown = ""
        self._unsaid = unsaid
        self._emit = emit
        self._markers = markers
        self._hold = math.inf if only_thought else HOLD if calls_possible else 0
        self._only_thought = only_thought
        self._held = ""

    async def feed(self, text: str) -> None:
        self._held += text
        if self.shown or (len(self._held) > self._hold and not self._unsaid.startswith(self._held.strip())):
            await self._show()

    async def end(self, *, calls: bool) -> None:
        """The turn is over; with calls, what was held back was a thought."""
        if (calls and not self.shown) or self._only_thought:
            if self._held:
                self._emit(ThoughtDelta(self._held))
            return
        if self._unsaid and not self.shown and self._held.strip() == self._unsaid:
            return
        await self._show()
        if self._markers is not None:
            self._say(await self._markers.finish())

    async def _show(self) -> None:
        held, self._held = self._held, ""
        self._say(held if self._markers is None else await self._markers.feed(held))

    def _say(self, text: str) -> None:
        if text:
            self.shown += text
            self._emit(AnswerDelta(text))


@dataclass(frozen=True, slots=True)
class Turn:
    """What the model did. A turn that the clock ended has no calls: half a call is none."""

    message: Message
    usage: Usage
    shown: str
    cut: bool
    timed_out: bool


async def take_turn(
    model: ChatModel,
    prompt: Sequence[Message],
    tools: Sequence[ToolSpec],
    speech: Speech,
    *,
    max_tokens: int,
    seconds: float,
    tool_choice: ToolChoice = AUTO,
    constraint: Constraint | None = None,
) -> Turn:
    """Stream the model's next message, for at most `seconds`.

    Raises:
        CallerError, ModelUnavailable: as the model raises them.
    """
    deltas: list[Delta] = []
    params = GenerationParams(max_tokens=max_tokens)
    stream = model.stream(prompt, tools=tools, tool_choice=tool_choice, constraint=constraint, params=params)
    clock = asyncio.timeout(None if seconds == math.inf else seconds)
    try:
        # The protocol asks for an iterator that can be closed, which AsyncIterator does not say.
        async with clock, aclosing(stream):  # type: ignore[type-var]
            async for delta in stream:
                deltas.append(delta)
                await speech.feed(delta.content)
    except TimeoutError:
        if not clock.expired():  # the model's own trouble
            raise
        done = assemble(deltas)
        await speech.end(calls=False)
        message = replace(done.message, tool_calls=())
        return Turn(message, usage_of(done, prompt, model), speech.shown, cut=True, timed_out=True)
    done = assemble(deltas)
    await speech.end(calls=bool(done.message.tool_calls))
    usage = usage_of(done, prompt, model)
    return Turn(done.message, usage, speech.shown, cut=done.finish_reason == "length", timed_out=False)


def usage_of(done: Completion, prompt: Sequence[Message], model: ChatModel) -> Usage:
    """As reported; counted by us where the model's server reports none or the answer was cut short."""
    if done.usage.total_tokens:
        return done.usage
    written = done.message.content + "".join(call.name + call.arguments for call in done.message.tool_calls)
    return Usage(sum(model.count_tokens(message.content) for message in prompt), model.count_tokens(written))
