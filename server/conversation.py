"""A chat request as the framework's own objects: messages, tools, constraint, parameters."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from framework.errors import CallerError
from framework.messages import Message, ToolCall, ToolSpec
from framework.models.base import AUTO, Choice, Constraint, GenerationParams, JsonSchema, Regex, ToolChoice
from framework.models.constraints import check_schema, constraint_grammar
from framework.models.request import check_request
from server.schemas import (
    AssistantMessage,
    ChatMessage,
    ChatRequest,
    Content,
    FunctionTool,
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedTool,
    StructuredOutputs,
    ToolMessage,
)

# Parameters that would alter the answer, each with the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "modalities": (["text"],),
    "audio": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
}
# Where the framework's name for a parameter is not the one that the caller used.
RENAMED = {"logprobs": "top_logprobs", "stop_ids": "stop_token_ids"}
# Parameters with one name for the caller and the framework; left out, the framework's default holds.
SAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
)
MOST_ANSWERS = 16
NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is asked of a chat model.

    Attributes:
        constrained_by: the request's name for what the constraint came from.
        one_call: at most one tool call is wanted.
        n: independent answers that are wanted.
    """

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: ToolChoice = AUTO
    constraint: Constraint | None = None
    params: GenerationParams = GenerationParams()  # noqa: RUF009  frozen
    one_call: bool = False
    n: int = 1
    constrained_by: str = "response_format"

    def in_its_words(self) -> AbstractContextManager[None]:
        """Errors of the model name the request's fields as the request does."""
        return _named({**RENAMED, "response_format": self.constrained_by})

    def answer(self, index: int) -> GenerationParams:
        """Parameters of one of the `n` answers: the first has the request's seed, each other one of its own from it."""
        if index == 0 or self.params.seed is None:
            return self.params
        digest = hashlib.sha256(f"{self.params.seed} {index}".encode()).digest()
        return replace(self.params, seed=int.from_bytes(digest[:8]) >> 1)


def read(request: ChatRequest) -> Conversation:
    """Translate and check a request. Its schemas may take a while (`check_schema`): not for an event loop.

    Raises:
        CallerError: a value out of range, a schema that can't be enforced, a conversation without text, a tool's reply
            to a call that was not made, a parameter that this server does not have; `field` names which.
    """
    _refuse_unsupported(request)
    tools = tuple(_tool(tool, place) for place, tool in enumerate(request.tools or ()))
    conversation = Conversation(
        messages(request.messages),
        tools,
        _choice(request),
        _constraint(request),
        _params(request),
        request.parallel_tool_calls is False,
        1 if request.n is None else request.n,
        "response_format" if request.structured_outputs is None else "structured_outputs",
    )
    with _named({"response_format": conversation.constrained_by}):
        check_request(conversation.messages, tools, conversation.tool_choice, conversation.constraint)
    return conversation


@contextmanager
def _named(names: Mapping[str, str]) -> Iterator[None]:
    """Errors name a field as the caller does."""
    try:
        yield
    except CallerError as error:
        ours = error.field or ""
        if ours not in names or type(error) is not CallerError:
            raise
        theirs = names[ours]
        raise CallerError(error.message.replace(ours, theirs, 1), hint=error.hint, field=theirs or None) from error


def messages(wire: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """The conversation's turns; a developer's message is a system message.

    Raises:
        CallerError: no turn has any text, or a tool's reply answers no call made before it.
    """
    turns = tuple(_message(message) for message in wire)
    if not any(turn.content.strip() or turn.tool_calls for turn in turns):
        raise CallerError("The conversation has no text.", field=f"messages.{len(turns) - 1}.content")
    called: set[str] = set()
    for place, turn in enumerate(turns):
        called.update(call.id for call in turn.tool_calls)
        if turn.role == "tool" and turn.tool_call_id not in called:
            raise CallerError(
                f"The tool's reply names the call {turn.tool_call_id!r}, which no earlier message asks for.",
                hint="Send the assistant's message with its tool_calls before it.",
                field=f"messages.{place}.tool_call_id",
            )
    return turns


def _message(wire: ChatMessage) -> Message:
    if isinstance(wire, AssistantMessage):
        calls = tuple(ToolCall(c.id, c.function.name, c.function.arguments) for c in wire.tool_calls or ())
        return Message("assistant", _text(wire.content), calls, name=wire.name)
    if isinstance(wire, ToolMessage):
        return Message("tool", _text(wire.content), tool_call_id=wire.tool_call_id, name=wire.name)
    return Message("user" if wire.role == "user" else "system", _text(wire.content), name=wire.name)


def _text(content: Content | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part.text for part in content)


def _refuse_unsupported(request: ChatRequest) -> None:
    for name, neutral in NEUTRAL.items():
        value = getattr(request, name)
        if value is not None and value not in neutral:
            raise CallerError(
                f"This server does not have {name}={value!r}.",
                hint=f"Leave it out{f' or send {neutral[0]!r}' if neutral else ''}.",
                field=name,
            )
    if request.n is not None and not 1 <= request.n <= MOST_ANSWERS:
        raise CallerError(f"n must be between 1 and {MOST_ANSWERS}, got {request.n}.", field="n")
    if request.stream_options is not None and not request.stream:
        raise CallerError("stream_options is only for stream=true.", field="stream_options")


def _tool(tool: FunctionTool, place: int) -> ToolSpec:
    function = tool.function
    parameters = NO_PARAMETERS if function.parameters is None else function.parameters
    _check(parameters, f"tools.{place}.function.parameters")
    return ToolSpec(function.name, function.description or "", parameters)


def _choice(request: ChatRequest) -> ToolChoice:
    choice = request.tool_choice
    if isinstance(choice, NamedTool):
        return ToolChoice.named(choice.function.name)
    return ToolChoice(choice or "auto")


def _constraint(request: ChatRequest) -> Constraint | None:
    wanted = request.response_format
    if request.structured_outputs is not None:
        if wanted is not None:
            raise CallerError(
                "structured_outputs and response_format exclude each other.",
                hint="Send one of them.",
                field="structured_outputs",
            )
        return _structured(request.structured_outputs)
    if isinstance(wanted, JsonObjectFormat):
        return JsonSchema({"type": "object"})
    if isinstance(wanted, JsonSchemaFormat):
        _check(wanted.json_schema.schema_, "response_format.json_schema.schema")
        return JsonSchema(wanted.json_schema.schema_)
    return None


def _structured(wanted: StructuredOutputs) -> Constraint:
    given = {name: value for name, value in wanted if value is not None}
    if len(given) != 1:
        raise CallerError(
            f"structured_outputs needs exactly one of json, regex and choice, got {len(given)}.",
            field="structured_outputs",
        )
    if wanted.json_ is not None:
        _check(wanted.json_, "structured_outputs.json")
        return JsonSchema(wanted.json_)
    if wanted.regex is not None:
        return _checked(Regex(wanted.regex), "structured_outputs.regex")
    return _checked(Choice(tuple(wanted.choice or ())), "structured_outputs.choice")


def _checked(constraint: Constraint, field: str) -> Constraint:
    constraint_grammar(constraint, field)
    return constraint


def _check(schema: dict[str, Any], field: str) -> None:
    try:
        json.dumps(schema, allow_nan=False)  # the parser lets NaN pass; JSON has no such number
    except ValueError as error:
        raise CallerError(f"{field} has a number that JSON does not have: {error}.", field=field) from error
    check_schema(schema, field)


def _params(request: ChatRequest) -> GenerationParams:
    if request.top_logprobs is not None and not request.logprobs:
        raise CallerError("top_logprobs needs logprobs=true.", field="top_logprobs")
    limit = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
    if None not in (request.max_tokens, request.max_completion_tokens) and (
        request.max_tokens != request.max_completion_tokens
    ):
        raise CallerError("max_tokens and max_completion_tokens differ.", hint="Send one of them.", field=limit)
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    given = {name: value for name in SAME if (value := getattr(request, name)) is not None}
    with _named({**RENAMED, "max_tokens": limit}):
        return GenerationParams(
            max_tokens=getattr(request, limit),
            stop=stop,
            logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            logit_bias={_token_id(key): bias for key, bias in (request.logit_bias or {}).items()},
            stop_ids=frozenset(request.stop_token_ids or ()),
            **given,
        )


def _token_id(key: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", key):
        raise CallerError(f"logit_bias has the key {key[:100]!r}, which is no token id.", field="logit_bias")
    return int(key)
