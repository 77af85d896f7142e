"""The conversation's vocabulary, in the shapes of OpenAI's chat API.

Frozen dataclasses: a message that was sent never changes. `to_openai` and `from_openai` are the only places that know
the wire format.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
FinishReason: TypeAlias = Literal["stop", "length", "tool_calls", "cancelled"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """What a model is told of a tool: `parameters` is a JSON schema of type object."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    def to_openai(self) -> dict[str, Any]:
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model asks for. `arguments` is JSON text, exactly as the model wrote it."""

    id: str
    name: str
    arguments: str

    def to_openai(self) -> dict[str, Any]:
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `tool_call_id` is set on a tool's reply only, `tool_calls` on an assistant's turn only."""

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    def to_openai(self) -> dict[str, Any]:
        """The wire form; an assistant turn that only calls tools has `content: null`."""
        wire: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            wire["content"] = self.content or None
            wire["tool_calls"] = [call.to_openai() for call in self.tool_calls]
        if self.tool_call_id is not None:
            wire["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            wire["name"] = self.name
        return wire

    @classmethod
    def from_openai(cls, wire: Mapping[str, Any]) -> Message:
        """Read a message that this module wrote, or that a model server answered with."""
        calls = tuple(
            ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
            for call in wire.get("tool_calls") or ()
        )
        return cls(wire["role"], wire.get("content") or "", calls, wire.get("tool_call_id"), wire.get("name"))


def system(content: str) -> Message:
    return Message("system", content)


def user(content: str) -> Message:
    return Message("user", content)


def assistant(content: str) -> Message:
    return Message("assistant", content)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one or several completions; `+` adds them up."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural-log probability of one generated token, and of the best alternatives at its place."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a tool call. The first piece of an `index` carries id and name; `arguments` pieces concatenate."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Delta:
    """What a model streams. The last delta carries `finish_reason` and `usage`; the others carry neither."""

    content: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer: what the deltas of one stream add up to."""

    message: Message
    finish_reason: FinishReason
    usage: Usage = field(default_factory=Usage)
    logprobs: tuple[TokenLogprob, ...] = ()


def assemble(deltas: Sequence[Delta]) -> Completion:
    """Add up a stream. Streamed equals unstreamed because this is the only way a `Completion` is made."""
    calls: dict[int, ToolCall] = {}
    for piece in (piece for delta in deltas for piece in delta.tool_calls):
        before = calls.get(piece.index, ToolCall("", "", ""))
        calls[piece.index] = replace(
            before,
            id=piece.id or before.id,
            name=piece.name or before.name,
            arguments=before.arguments + piece.arguments,
        )
    message = Message("assistant", "".join(d.content for d in deltas), tuple(calls[i] for i in sorted(calls)))
    reasons = [d.finish_reason for d in deltas if d.finish_reason is not None]
    return Completion(
        message,
        reasons[-1] if reasons else "cancelled",
        sum((d.usage for d in deltas if d.usage is not None), Usage()),
        tuple(token for d in deltas for token in d.logprobs),
    )


async def collect(stream: AsyncIterable[Delta]) -> Completion:
    """Run a stream to its end and add it up."""
    return assemble([delta async for delta in stream])


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text, so it can be hashed or compared."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
