"""An agent under a model's name: its events as pieces of a chat answer.

The conversation's last message is the question, the ones before it are history; nothing is kept between requests.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

from agents import Agent
from agents.events import Answer, AnswerDelta, Event, RunFinished, ThoughtDelta, ToolCalled, ToolReturned
from framework.documents import Citation
from framework.errors import CallerError, OperatorError
from framework.messages import Delta, FinishReason
from framework.models.base import AUTO, GREEDY, NONE
from server.conversation import Conversation
from server.replies import Piece
from server.schemas import Annotation, CitationBody, RunBody, StepBody, UrlCitation

MARKER = re.compile(r"\[(\d+)\]")
FINISH: dict[str, FinishReason] = {"answered": "stop", "declined": "stop", "cancelled": "cancelled"}
# Parameters of an answer that an agent's many requests to its model have no place for, by the caller's name.
SHAPING = {
    "logprobs": "logprobs",
    "stop": "stop",
    "stop_token_ids": "stop_ids",
    "logit_bias": "logit_bias",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "repetition_penalty": "repetition_penalty",
    "top_k": "top_k",
    "min_p": "min_p",
}
STEP_TEXT = 2000  # characters of a tool's result that a step shows


class AgentResponder:
    """Asks an agent. What shapes the wire form and an agent can't honour is refused; how to sample is the agent's."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    async def pieces(self, conversation: Conversation) -> AsyncGenerator[Piece]:
        _refuse_unsupported(conversation)
        *history, question = conversation.messages
        notices = list(_notices(conversation))
        events = self.agent.astream(question.content, history=history)
        async with aclosing(events):
            async for event in events:
                piece = _piece(event, notices)
                if piece is not None:
                    yield piece


def _refuse_unsupported(conversation: Conversation) -> None:
    refused = {
        "tools": bool(conversation.tools),
        "tool_choice": conversation.tool_choice not in (AUTO, NONE),
        conversation.constrained_by: conversation.constraint is not None,
        "n": conversation.n > 1,
    }
    for name, ours in SHAPING.items():
        refused[name] = getattr(conversation.params, ours) != getattr(GREEDY, ours)
    for name, given in refused.items():
        if given:
            raise CallerError(
                f"An agent does not take {name}: what it asks its model is its own.",
                hint="Leave it out, or name a model.",
                field=name,
            )
    question = conversation.messages[-1]
    if question.role != "user" or not question.content.strip():
        raise CallerError(
            "An agent answers a user's question, and the last message holds none.",
            hint="End the messages with one of role user.",
            field=f"messages.{len(conversation.messages) - 1}",
        )


def _notices(conversation: Conversation) -> Iterator[str]:
    params = conversation.params
    if any(message.role == "system" for message in conversation.messages):
        yield "The system message was not applied: an agent has its own instructions."
    given = {
        "temperature": params.temperature != 0,
        "top_p": params.top_p != 1,
        "max_tokens": params.max_tokens is not None,
    }
    for name, changes in given.items():
        if changes:
            yield f"{name} was not applied: an agent samples by its own settings and ends by its own budget."


def _piece(event: Event, notices: list[str]) -> Piece | None:
    match event:
        case AnswerDelta(text):
            return Piece(Delta(text))
        case ThoughtDelta(text):
            return Piece(step=StepBody(type="thought", text=text))
        case ToolCalled(call):
            return Piece(step=StepBody(type="tool_call", call_id=call.id, tool=call.name, arguments=call.arguments))
        case ToolReturned(call, result, seconds):
            return Piece(
                step=StepBody(
                    type="tool_result",
                    call_id=call.id,
                    tool=call.name,
                    text=result.content[:STEP_TEXT],
                    omitted=max(0, len(result.content) - STEP_TEXT) + result.truncated,
                    error=result.error,
                    seconds=round(seconds, 4),
                    hits=len(result.hits),
                )
            )
        case RunFinished(answer):
            return _last(answer, notices)
    return None


def _last(answer: Answer, notices: list[str]) -> Piece:
    finish = FINISH.get(answer.stop, "length")
    if finish == "cancelled":
        raise OperatorError("The agent's run was cancelled before it was finished.")
    return Piece(
        Delta(finish_reason=finish, usage=answer.usage),
        citations=tuple(_citation(citation) for citation in answer.citations),
        annotations=tuple(_annotations(answer)),
        run=RunBody(
            run_id=answer.run_id,
            stop=answer.stop,
            supported=answer.supported,
            notices=[*answer.notices, *notices],
        ),
    )


def _citation(citation: Citation) -> CitationBody:
    return CitationBody(
        number=citation.number,
        document_id=citation.document_id,
        version=citation.version,
        start=citation.start,
        end=citation.end,
        quote=citation.quote,
        title=citation.title,
        source=citation.source,
        heading_path=list(citation.heading_path),
        page=citation.page,
    )


def _annotations(answer: Answer) -> Iterator[Annotation]:
    """One for each marker in the text, in OpenAI's form, for clients that show those."""
    by_number = {citation.number: citation for citation in answer.citations}
    for marker in MARKER.finditer(answer.text):
        citation = by_number.get(int(marker.group(1)))
        if citation is not None:
            yield Annotation(
                type="url_citation",
                url_citation=UrlCitation(
                    start_index=marker.start(),
                    end_index=marker.end(),
                    title=citation.title,
                    url=citation.source or citation.document_id,
                ),
            )
