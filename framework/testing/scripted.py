"""A chat model that plays a script: test an agent without weights, network or chance.

    model = ScriptedChat([tool_call("search_docs", query="refunds"), "Refunds take five days [1]."])
    agent = Agent("helper", model=model, ...)

It streams in several pieces, counts usage and keeps every request for the test to look at.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from framework.errors import CallerError, ConfigError
from framework.messages import Completion, Delta, Message, ToolCall, ToolCallDelta, ToolSpec, Usage
from framework.models.base import AUTO, GREEDY, ChatModel, Constraint, GenerationParams, Role, ToolChoice
from framework.models.request import check_request

Reply: TypeAlias = str | ToolCall | Sequence[ToolCall] | Completion | Exception
Turn: TypeAlias = Reply | Callable[[Sequence[Message], Sequence[ToolSpec]], Reply]
ARGUMENT_PIECE = 8  # characters of a call's arguments in one delta


@dataclass(frozen=True, slots=True)
class Request:
    """What the model was asked."""

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: ToolChoice = AUTO
    constraint: Constraint | None = None
    params: GenerationParams = GREEDY


class ScriptedChat:
    """Answers request after request with the turns it was given, in order.

    Args:
        turns: a string is streamed word by word; a ToolCall, or several, as calls whose arguments come in pieces (a
            call without an id gets one); a Completion as it is; an Exception is raised; a function gets the messages
            and the tools and returns one of these.
        context_length: a longer prompt is refused, as a real model would; a token is a word or a mark here.
        guided: plays a model that is too small to call a tool by itself; see `ChatModel`.
        roles: what it is in the roles that adapters trained it for.

    Raises:
        AssertionError: from `stream`, when it is asked more often than it has turns.
    """

    def __init__(
        self,
        turns: Iterable[Turn],
        name: str = "scripted",
        context_length: int = 8192,
        guided: bool = False,
        roles: Mapping[Role, ChatModel] | None = None,
    ) -> None:
        self.guided = guided
        self.roles = dict(roles or {})
        self.turns = tuple(turns)
        self.requests: list[Request] = []
        self._name = name
        self._context_length = context_length
        self._calls = 0

    @property
    def name(self) -> str:
        return self._name

    @property
    def context_length(self) -> int:
        return self._context_length

    def in_role(self, role: Role) -> ChatModel | None:
        return self.roles.get(role)

    def count_tokens(self, text: str) -> int:
        return len(re.findall(r"\w+|[^\w\s]", text))

    async def stream(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        tool_choice: ToolChoice = AUTO,
        constraint: Constraint | None = None,
        params: GenerationParams = GREEDY,
    ) -> AsyncIterator[Delta]:
        check_request(messages, tools, tool_choice, constraint)
        prompt = sum(self.count_tokens(message.content) for message in messages)
        if prompt > self.context_length:
            raise CallerError(
                f"The prompt has {prompt} tokens, the context holds {self.context_length}.", field="messages"
            )
        completion = self._next(Request(tuple(messages), tuple(tools), tool_choice, constraint, params), prompt)
        for piece in _pieces(completion.message):
            yield piece
            await asyncio.sleep(0)  # a real model yields to the event loop between tokens, and can be cancelled there
        yield Delta(logprobs=completion.logprobs, finish_reason=completion.finish_reason, usage=completion.usage)

    def _next(self, request: Request, prompt_tokens: int) -> Completion:
        assert len(self.requests) < len(self.turns), (
            f"The scripted model {self.name!r} was asked more often than it has turns ({len(self.turns)}); "
            f"the last message was: {request.messages[-1].content[:200]!r}"
        )
        turn = self.turns[len(self.requests)]
        self.requests.append(request)
        reply = turn(request.messages, request.tools) if callable(turn) else turn
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, Completion):
            return reply
        if isinstance(reply, str):
            message = Message("assistant", reply)
        else:
            calls = (reply,) if isinstance(reply, ToolCall) else reply
            message = Message("assistant", tool_calls=tuple(self._with_id(call) for call in calls))
        written = message.content + "".join(call.name + call.arguments for call in message.tool_calls)
        usage = Usage(prompt_tokens, self.count_tokens(written))
        return Completion(message, "tool_calls" if message.tool_calls else "stop", usage)

    def _with_id(self, call: ToolCall) -> ToolCall:
        self._calls += 1
        return call if call.id else replace(call, id=f"call_{self._calls}")


def tool_call(name: str, **arguments: Any) -> ToolCall:
    """A call for a script: `tool_call("search_docs", query="refunds")`. The model gives it an id when it plays it."""
    return ToolCall("", name, json.dumps(arguments, ensure_ascii=False))


def scripted_from_file(path: str) -> ScriptedChat:
    """A model from a JSON Lines file: each line a string, or a list of `{"name": ..., "arguments": {...}}` calls.

    Raises:
        ConfigError: the file can't be read, or a line is neither.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        turns = [_turn(json.loads(line)) for line in lines if line.strip()]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"The script {path!r} can't be read: {error!r}.",
            hint='Write one turn a line: "text", or [{"name": "tool", "arguments": {}}].',
        ) from error
    return ScriptedChat(turns, name=f"scripted:{path}")


def _turn(value: Any) -> Turn:
    return value if isinstance(value, str) else [tool_call(call["name"], **call["arguments"]) for call in value]


def _pieces(message: Message) -> Iterator[Delta]:
    for piece in re.findall(r"\s*\S+\s*?|\s+", message.content):
        yield Delta(piece)
    for index, call in enumerate(message.tool_calls):
        yield Delta(tool_calls=(ToolCallDelta(index, call.id, call.name),))
        for start in range(0, len(call.arguments), ARGUMENT_PIECE):
            yield Delta(tool_calls=(ToolCallDelta(index, arguments=call.arguments[start : start + ARGUMENT_PIECE]),))
