"""What answers a chat request, a model or an agent, and its answer as OpenAI's chunks or as one completion.

Both kinds give the same pieces, and both wire forms are made from them: streamed equals unstreamed.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from framework.errors import OperatorError
from framework.messages import Delta, FinishReason, TokenLogprob, ToolCall, ToolCallDelta, Usage, assemble
from framework.models.base import ChatModel
from server.conversation import Conversation
from server.schemas import (
    Annotation,
    CallBody,
    CallDeltaBody,
    ChatChunk,
    ChatCompletion,
    ChoiceBody,
    ChunkChoice,
    CitationBody,
    DeltaBody,
    FinishReasonBody,
    FunctionBody,
    LogprobsBody,
    MessageBody,
    RunBody,
    StepBody,
    TokenLogprobBody,
    TopLogprob,
    UsageBody,
)
from server.side_by_side import side_by_side


@dataclass(frozen=True, slots=True)
class Piece:
    """The next of an answer. `step`, `citations` and `run` come from agents; the last two with the last piece.

    `index` tells which of several answers it belongs to.
    """

    delta: Delta = field(default_factory=Delta)
    step: StepBody | None = None
    citations: tuple[CitationBody, ...] = ()
    annotations: tuple[Annotation, ...] = ()
    run: RunBody | None = None
    index: int = 0


class Responder(Protocol):
    """Answers a conversation. Each answer's last piece has its finish reason and usage; closing ends the work."""

    def pieces(self, conversation: Conversation) -> AsyncGenerator[Piece]: ...


class ModelResponder:
    """Hands the conversation to a chat model as it is, once for each answer that is wanted."""

    def __init__(self, model: ChatModel) -> None:
        self.model = model

    async def pieces(self, conversation: Conversation) -> AsyncGenerator[Piece]:
        answers = [self._answer(conversation, index) for index in range(conversation.n)]
        together = answers[0] if len(answers) == 1 else _merged(answers)
        async with aclosing(together):
            async for piece in together:
                yield piece

    async def _answer(self, conversation: Conversation, index: int) -> AsyncGenerator[Piece]:
        stream = self.model.stream(
            conversation.messages,
            tools=conversation.tools,
            tool_choice=conversation.tool_choice,
            constraint=conversation.constraint,
            params=conversation.answer(index),
        )
        with conversation.in_its_words():
            async with _closed(stream) as deltas:
                async for delta in deltas:
                    if conversation.one_call and any(call.index for call in delta.tool_calls):
                        delta = replace(delta, tool_calls=tuple(call for call in delta.tool_calls if call.index == 0))
                    yield Piece(delta, index=index)


async def _merged(answers: Sequence[AsyncGenerator[Piece]]) -> AsyncGenerator[Piece]:
    async with aclosing(side_by_side(answers)) as pieces:
        async for _, piece in pieces:
            yield piece


def _closed(items: AsyncIterator[Delta]) -> aclosing[AsyncGenerator[Delta]]:
    """A model's iterator as a context that closes it: a protocol promises an iterator, a generator is what it is."""

    async def forward() -> AsyncGenerator[Delta]:
        try:
            async for item in items:
                yield item
        finally:
            close = getattr(items, "aclose", None)
            if close is not None:
                await close()

    return aclosing(forward())


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every chunk of one answer repeats."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))


async def chunks(pieces: AsyncGenerator[Piece], envelope: Envelope, with_usage: bool) -> AsyncGenerator[ChatChunk]:
    """An answer as a stream. With `with_usage` a last chunk without choices carries the usage."""
    usage = Usage()
    begun: set[int] = set()
    async with aclosing(pieces):
        async for piece in pieces:
            usage = _together(usage, piece.delta.usage)
            yield _chunk(envelope, piece, _delta(piece, {} if piece.index in begun else {"role": "assistant"}))
            begun.add(piece.index)
    if with_usage:
        yield ChatChunk(**_head(envelope, "chat.completion.chunk"), choices=[], usage=_usage(usage))


async def completion(pieces: AsyncIterator[Piece], envelope: Envelope) -> ChatCompletion:
    """An answer as a whole."""
    answers: dict[int, list[Piece]] = {}
    usage = Usage()
    async for piece in pieces:
        usage = _together(usage, piece.delta.usage)
        answers.setdefault(piece.index, []).append(piece)
    choices = [_choice_body(index, seen) for index, seen in sorted(answers.items())]
    answer = ChatCompletion(**_head(envelope, "chat.completion"), choices=choices, usage=_usage(usage))
    last = answers[0][-1]
    if last.run is not None:
        steps = [piece.step for piece in answers[0] if piece.step is not None]
        answer.run = last.run.model_copy(update={"steps": steps})
    return answer


def _together(usage: Usage, more: Usage | None) -> Usage:
    """Of several answers to one prompt: its tokens count once."""
    if more is None:
        return usage
    prompt = max(usage.prompt_tokens, more.prompt_tokens)
    return Usage(prompt, usage.completion_tokens + more.completion_tokens)


def _choice_body(index: int, seen: Sequence[Piece]) -> ChoiceBody:
    whole = assemble([piece.delta for piece in seen])
    last = seen[-1]
    message = MessageBody(role="assistant", content=whole.message.content, refusal=None)
    if whole.message.tool_calls:
        message.content = whole.message.content or None
        message.tool_calls = [_call(call) for call in whole.message.tool_calls]
    if last.run is not None:
        message.citations, message.annotations = list(last.citations), list(last.annotations)
    return ChoiceBody(
        index=index,
        message=message,
        logprobs=_logprobs(whole.logprobs),
        finish_reason=_finish(whole.finish_reason),
    )


def _head(envelope: Envelope, kind: str) -> dict[str, Any]:
    return {"id": envelope.id, "object": kind, "created": envelope.created, "model": envelope.model}


def _chunk(envelope: Envelope, piece: Piece, delta: DeltaBody) -> ChatChunk:
    reason = piece.delta.finish_reason
    choice = ChunkChoice(
        index=piece.index,
        delta=delta,
        logprobs=_logprobs(piece.delta.logprobs),
        finish_reason=None if reason is None else _finish(reason),
    )
    extra: dict[str, Any] = {"step": piece.step, "run": piece.run}
    told = {name: value for name, value in extra.items() if value is not None}
    return ChatChunk(**_head(envelope, "chat.completion.chunk"), choices=[choice], **told)


def _delta(piece: Piece, role: dict[str, Any]) -> DeltaBody:
    """Only what there is: a key that is absent here is absent on the wire."""
    fields = dict(role)
    if piece.delta.content:
        fields["content"] = piece.delta.content
    if piece.delta.tool_calls:
        fields["tool_calls"] = [_call_delta(call) for call in piece.delta.tool_calls]
    if piece.run is not None:
        fields |= {"citations": list(piece.citations), "annotations": list(piece.annotations)}
    return DeltaBody(**fields)


def _call_delta(call: ToolCallDelta) -> CallDeltaBody:
    if call.id is None:
        return CallDeltaBody(index=call.index, function=FunctionBody(arguments=call.arguments))
    function = FunctionBody(name=call.name, arguments=call.arguments)
    return CallDeltaBody(index=call.index, id=call.id, type="function", function=function)


def _finish(reason: FinishReason) -> FinishReasonBody:
    if reason == "cancelled":
        raise OperatorError("The model's work was cancelled before the answer was finished.")
    return reason


def _call(call: ToolCall) -> CallBody:
    return CallBody(id=call.id, type="function", function=FunctionBody(name=call.name, arguments=call.arguments))


def _usage(usage: Usage) -> UsageBody:
    return UsageBody(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
    )


def _logprobs(tokens: Iterable[TokenLogprob]) -> LogprobsBody | None:
    content = [
        TokenLogprobBody(**_top(t.token, t.logprob), top_logprobs=[TopLogprob(**_top(*top)) for top in t.top])
        for t in tokens
    ]
    return LogprobsBody(content=content, refusal=None) if content else None


def _top(token: str, logprob: float) -> dict[str, Any]:
    """A token that is a part of a character has no bytes of its own to tell: its text holds the replacement mark."""
    return {"token": token, "logprob": max(logprob, -9999.0), "bytes": list(token.encode())}
