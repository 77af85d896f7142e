"""Rows read from JSON with distrust: whatever is wrong is named with its file, line and key."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from framework.documents import content_hash, is_text
from framework.errors import CallerError
from framework.messages import ROLES, Message, ToolCall, ToolSpec, assistant, system, user
from framework.training.rows import ChatRow, Kind, PairRow, PreferenceRow, Provenance, Row
from framework.training.tool_schemas import schema_fault


def parse_row(value: Mapping[str, Any], kind: Kind, where: str) -> Row:
    """One row of a kind.

    Raises:
        CallerError: naming `where` and the key at fault.
    """
    if kind == "chat" and "question" in value and "messages" not in value:
        return _short(value, where)
    if kind == "chat":
        return _chat(value, where)
    return _preference(value, where) if kind == "preference" else _pair(value, where)


def _chat(value: Mapping[str, Any], where: str) -> ChatRow:
    _only(value, {"messages", "tools", "document", "provenance"}, where)
    tools = _tools(value, where)
    messages = parse_messages(value.get("messages"), where, "messages", tools)
    if messages[-1].role != "assistant":
        raise _wrong(where, "messages", f"ends with the role {messages[-1].role!r}; an assistant's turn is learned")
    return ChatRow(messages, _text(value, "document", where), _provenance(value, where), tools)


def _short(value: Mapping[str, Any], where: str) -> ChatRow:
    _only(value, {"question", "answer", "system", "document", "provenance"}, where)
    turns = (user(_text(value, "question", where)), assistant(_text(value, "answer", where)))
    head = (system(_text(value, "system", where)),) if "system" in value else ()
    name = Path(where).name
    # Files in two folders may have one name, and a moved folder must not move rows to another side of a split.
    own = f"{name} {content_hash(*(message.content for message in (*head, *turns)))[:8]}"
    document = _text(value, "document", where) if "document" in value else own
    known = _provenance(value, where) if "provenance" in value else Provenance(name.rpartition(":")[0])
    return ChatRow((*head, *turns), document, known)


def _preference(value: Mapping[str, Any], where: str) -> PreferenceRow:
    _only(value, {"prompt", "chosen", "rejected", "tools", "document", "provenance"}, where)
    tools = _tools(value, where)
    prompt = parse_messages(value.get("prompt"), where, "prompt", tools)
    if prompt[-1].role == "assistant":
        raise _wrong(where, "prompt", "ends with an assistant's turn, which 'chosen' and 'rejected' have to be")
    chosen, rejected = (_answer(value.get(key), where, key, tools) for key in ("chosen", "rejected"))
    if chosen == rejected:
        raise _wrong(where, "rejected", "is the same as 'chosen', so that there is nothing to prefer")
    return PreferenceRow(prompt, chosen, rejected, _text(value, "document", where), _provenance(value, where), tools)


def _pair(value: Mapping[str, Any], where: str) -> PairRow:
    _only(value, {"query", "positive", "negatives", "document", "provenance"}, where)
    query, positive = _text(value, "query", where), _text(value, "positive", where)
    negatives = value.get("negatives") or []
    if not isinstance(negatives, list):
        raise _wrong(where, "negatives", f"must be a list of texts, got {negatives!r:.80}")
    texts = tuple(_checked(text, where, f"negatives[{n}]") for n, text in enumerate(negatives))
    if positive in texts:
        raise _wrong(where, "negatives", "holds the positive passage too")
    return PairRow(query, positive, _text(value, "document", where), _provenance(value, where), texts)


def parse_messages(value: Any, where: str, key: str, tools: Sequence[ToolSpec] = ()) -> tuple[Message, ...]:
    """A conversation: calls name a tool of `tools` and are answered, in any order, before the next other message.

    Raises:
        CallerError: naming `where`, the message and what is wrong with it.
    """
    if not isinstance(value, list) or not value:
        raise _wrong(where, key, f"must be a list of messages, got {value!r:.80}")
    messages: list[Message] = []
    open_calls: set[str] = set()
    for number, item in enumerate(value):
        place = f"{key}[{number}]"
        message = _message(item, where, place, tools)
        if message.role == "tool":
            if message.tool_call_id not in open_calls:
                raise _wrong(where, f"{place}.tool_call_id", f"answers no open call, got {message.tool_call_id!r}")
            open_calls.discard(message.tool_call_id)
        elif open_calls:
            raise _wrong(where, place, f"comes before the call {min(open_calls)!r} is answered")
        if message.role == "assistant" and not number:
            raise _wrong(where, place, "is an assistant's turn that answers nothing")
        if message.role == "system" and number:
            raise _wrong(where, place, "is a system message, which comes first or not at all")
        open_calls |= {call.id for call in message.tool_calls}
        messages.append(message)
    if open_calls and messages[-1].role != "assistant":
        raise _wrong(where, key, f"ends before the call {min(open_calls)!r} is answered")
    return tuple(messages)


def _message(item: Any, where: str, place: str, tools: Sequence[ToolSpec]) -> Message:
    if not isinstance(item, dict):
        raise _wrong(where, place, f"must be an object, got {item!r:.80}")
    _only(item, {"role", "content", "tool_calls", "tool_call_id", "name"}, where, place)
    role, content = item.get("role"), item.get("content")
    if role not in ROLES:
        raise _wrong(where, f"{place}.role", f"must be one of {', '.join(ROLES)}, got {role!r:.80}")
    for key, owner in (("tool_calls", "assistant"), ("tool_call_id", "tool")):
        if item.get(key) and role != owner:
            raise _wrong(where, f"{place}.{key}", f"belongs to the role {owner!r}, not to {role!r}")
    calls = item.get("tool_calls") or []
    if not isinstance(calls, list):
        raise _wrong(where, f"{place}.tool_calls", f"must be a list, got {calls!r:.80}")
    parsed = tuple(_call(call, where, f"{place}.tool_calls[{n}]", tools) for n, call in enumerate(calls))
    if len({call.id for call in parsed}) < len(parsed):
        raise _wrong(where, f"{place}.tool_calls", "has two calls with the same id")
    if content is None and parsed:
        content = ""
    if not isinstance(content, str) or not is_text(content):
        raise _wrong(where, f"{place}.content", f"must be text, got {content!r:.80}")
    if not content.strip() and not parsed and role != "tool":
        raise _wrong(where, f"{place}.content", "is empty")
    name = _optional(item.get("name"), where, f"{place}.name")
    answered = _optional(item.get("tool_call_id") or None, where, f"{place}.tool_call_id")
    return Message(role, content, parsed, answered, name)


def _call(item: Any, where: str, place: str, tools: Sequence[ToolSpec]) -> ToolCall:
    function = item.get("function") if isinstance(item, dict) else None
    if not isinstance(function, dict):
        raise _wrong(where, place, f"must be {{'id', 'type': 'function', 'function': {{...}}}}, got {item!r:.80}")
    name = _checked(function.get("name"), where, f"{place}.function.name")
    if name not in {tool.name for tool in tools}:
        raise _wrong(where, f"{place}.function.name", f"is {name!r}, which the row's 'tools' does not list")
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        raise _wrong(where, f"{place}.function.arguments", f"must be JSON as a text, got {arguments!r:.80}")
    try:
        known = json.loads(arguments)
    except ValueError:
        known = None
    if not isinstance(known, dict):
        raise _wrong(where, f"{place}.function.arguments", f"must be a JSON object as a text, got {arguments!r:.80}")
    return ToolCall(_checked(item.get("id"), where, f"{place}.id"), name, arguments)


def _tools(value: Mapping[str, Any], where: str) -> tuple[ToolSpec, ...]:
    tools = []
    for number, item in enumerate(_list(value.get("tools"), where, "tools")):
        place = f"tools[{number}].function"
        function = item.get("function") if isinstance(item, dict) else None
        if not isinstance(function, dict):
            raise _wrong(where, f"tools[{number}]", f"must be {{'type', 'function': {{...}}}}, got {item!r:.80}")
        parameters = function.get("parameters", {"type": "object", "properties": {}})
        if not isinstance(parameters, dict):
            raise _wrong(where, f"{place}.parameters", f"must be a JSON schema, got {parameters!r:.80}")
        if fault := schema_fault(parameters):
            raise _wrong(where, f"{place}.parameters", f"can't be used: {fault.rstrip('.')}")
        description = function.get("description") or ""
        if not isinstance(description, str):
            raise _wrong(where, f"{place}.description", f"must be text, got {description!r:.80}")
        tools.append(ToolSpec(_checked(function.get("name"), where, f"{place}.name"), description, parameters))
    if len({tool.name for tool in tools}) < len(tools):
        raise _wrong(where, "tools", "lists a name twice")
    return tuple(tools)


def _answer(value: Any, where: str, key: str, tools: Sequence[ToolSpec]) -> Message:
    if isinstance(value, str):
        return assistant(_checked(value, where, key))
    message = _message(value, where, key, tools)
    if message.role != "assistant":
        raise _wrong(where, f"{key}.role", f"must be 'assistant', got {message.role!r}")
    return message


def _provenance(value: Mapping[str, Any], where: str) -> Provenance:
    given = value.get("provenance")
    if not isinstance(given, dict):
        raise _wrong(where, "provenance", f"must be {{'source', 'licence', 'synthetic'}}, got {given!r:.80}")
    synthetic = given.get("synthetic")
    if not isinstance(synthetic, bool):
        raise _wrong(where, "provenance.synthetic", f"must be true or false, got {synthetic!r:.80}")
    details = {key: item for key, item in given.items() if key not in ("source", "licence", "synthetic")}
    for key, item in details.items():
        if not isinstance(item, str | int | float | bool):
            raise _wrong(where, f"provenance.{key}", f"must be a text, a number or a truth value, got {item!r:.80}")
    source, licence = (_checked(given.get(key), where, f"provenance.{key}") for key in ("source", "licence"))
    return Provenance(source, licence, synthetic, details)


def _list(value: Any, where: str, key: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise _wrong(where, key, f"must be a list, got {value!r:.80}")
    return value


def _text(value: Mapping[str, Any], key: str, where: str) -> str:
    return _checked(value.get(key), where, key)


def _optional(value: Any, where: str, key: str) -> str | None:
    return None if value is None else _checked(value, where, key)


def _checked(value: Any, where: str, key: str) -> str:
    if not isinstance(value, str) or not value.strip() or not is_text(value):
        raise _wrong(where, key, f"must be a text that is not empty, got {value!r:.80}")
    return value


def _only(value: Mapping[str, Any], known: set[str], where: str, place: str = "") -> None:
    for key in value:
        if key not in known:
            name = f"{place}.{key}" if place else str(key)
            raise _wrong(where, name, f"is no key of a row here; known are {', '.join(sorted(known))}")


def _wrong(where: str, key: str, what: str) -> CallerError:
    return CallerError(f"{where}: {key} {what}.", field=key)
