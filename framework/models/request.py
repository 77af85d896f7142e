"""What every chat model checks of a request before it works on it."""

from __future__ import annotations

from collections.abc import Sequence

from framework.errors import CallerError
from framework.messages import ROLES, Message, ToolSpec
from framework.models.base import Constraint, GenerationParams, ToolChoice
from framework.models.json_schema import measure


def check_request(
    messages: Sequence[Message],
    tools: Sequence[ToolSpec] = (),
    tool_choice: ToolChoice = ToolChoice(),  # noqa: B008  frozen
    constraint: Constraint | None = None,
) -> None:
    """Refuse a request that no model could serve.

    Raises:
        CallerError: no messages, one that is no `Message`, an unknown role, a tool's reply that names no call, two
            tools of one name, a tool with an enormous schema, a tool choice without that tool, or a constraint beside
            tools; `field` names which.
    """
    if not messages:
        raise CallerError("messages must not be empty.", field="messages")
    for place, message in enumerate(messages):
        _check_message(message, place)
    for place, tool in enumerate(tools):
        measure(tool.parameters, f"tools.{place}.function.parameters")
    names = [tool.name for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise CallerError(f"Two tools are named {twice!r}.", field="tools")
    if tool_choice.name is not None and tool_choice.name not in names:
        known = ", ".join(names) or "none"
        raise CallerError(
            f"tool_choice names the tool {tool_choice.name!r}.", hint=f"Tools given: {known}.", field="tool_choice"
        )
    if tool_choice.mode == "required" and not tools:
        raise CallerError("tool_choice requires a call, but no tools are given.", field="tool_choice")
    if constraint is not None and tools and tool_choice.mode != "none":
        raise CallerError("A constraint and tools exclude each other.", field="response_format")


def _check_message(message: Message, place: int) -> None:
    if not isinstance(message, Message):
        raise CallerError(
            f"messages are Message objects, got {type(message).__name__}.",
            hint="framework.messages.user, system and assistant make them.",
            field=f"messages.{place}",
        )
    if message.role not in ROLES:
        raise CallerError(
            f"Unknown role {message.role!r}.",
            hint=f"Use one of {', '.join(ROLES)}.",
            field=f"messages.{place}.role",
        )
    if message.role == "tool" and message.tool_call_id is None:
        raise CallerError("A tool's reply must name the call that it answers.", field=f"messages.{place}.tool_call_id")


def check_ids(params: GenerationParams, vocabulary: int) -> None:
    """Refuse ids that are no token of a model with this many.

    Raises:
        CallerError: `field` is "logit_bias" or "stop_ids".
    """
    for field, ids in (("logit_bias", params.logit_bias), ("stop_ids", params.stop_ids)):
        highest = max(ids, default=0)
        if highest >= vocabulary:
            raise CallerError(
                f"{field} names token {highest}; this model has tokens 0 to {vocabulary - 1}.", field=field
            )
