"""Wrong tool calls: one argument changed, another tool, a call where none is asked for. They fit the tools' schemas,
since served models can't write any other."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from framework.messages import Message, ToolCall, ToolSpec
from framework.models.json_schema import misfit
from framework.training.tool_schemas import part_of

WORD = re.compile(r"[\w'’.@:/-]*\w")
DATE = re.compile(r"\d{4}-\d\d-\d\d")
TRIES: Final = 8


def wrong_call(
    messages: Sequence[Message], tools: Sequence[ToolSpec], dice: random.Random
) -> tuple[Message, str] | None:
    """A worse turn than the last message, and the rule that it was made by; None where no rule finds one.

    Args:
        messages: a conversation that ends with the right assistant's turn.
    """
    right = messages[-1]
    request = next((message.content for message in reversed(messages) if message.role == "user"), "")
    if not right.tool_calls:
        if messages[-2].role != "user":
            return None  # an answer from results: what is wrong there is no matter of a rule
        tool = dice.choice(tools)
        call = _filled(tool, request, {}, dice)
        return (_turn((call,)), "calls where no tool serves") if call else None
    rules = [("a wrong argument", _wrong_argument), ("the wrong tool", _wrong_tool)]
    for name, rule in dice.sample(rules, len(rules)):
        call = rule(right.tool_calls[0], tools, request, dice)
        if call is not None:
            return _turn((call, *right.tool_calls[1:])), name
    return None


def _turn(calls: tuple[ToolCall, ...]) -> Message:
    return Message("assistant", "", tool_calls=calls)


def _call(id_: str, name: str, arguments: Mapping[str, Any]) -> ToolCall:
    return ToolCall(id_, name, json.dumps(arguments, ensure_ascii=False))


def _wrong_argument(call: ToolCall, tools: Sequence[ToolSpec], request: str, dice: random.Random) -> ToolCall | None:
    schema = next(tool.parameters for tool in tools if tool.name == call.name)
    right = json.loads(call.arguments)
    names = list(right)
    for name in dice.sample(names, len(names)):
        inner = part_of(schema, "properties", name)
        for value in _others(right[name], inner, request, right, dice):
            changed = {**right, name: value}
            if changed != right and _fits(changed, schema):
                return _call(call.id, call.name, changed)
        if name not in schema.get("required", ()):
            return _call(call.id, call.name, {key: value for key, value in right.items() if key != name})
    return None


def _wrong_tool(call: ToolCall, tools: Sequence[ToolSpec], request: str, dice: random.Random) -> ToolCall | None:
    others = [tool for tool in tools if tool.name != call.name]
    for tool in dice.sample(others, len(others)):
        made = _filled(tool, request, json.loads(call.arguments), dice)
        if made is not None:
            return ToolCall(call.id, made.name, made.arguments)
    return None


def _others(
    value: Any, schema: Mapping[str, Any], request: str, right: Mapping[str, Any], dice: random.Random
) -> Iterator[Any]:
    """Values of the same type that are not the right one, the likeliest mistakes first."""
    if "enum" in schema:
        wrong = [item for item in schema["enum"] if item != value]
        yield from dice.sample(wrong, len(wrong))
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        said = [float(text) if "." in text else int(text) for text in re.findall(r"\d+(?:\.\d+)?", request)]
        yield from (item for item in said if item != value)
        yield from (value + 1, value * 10, value - 1)
    elif isinstance(value, str):
        yield from _other_texts(value, request, right, dice)
    elif isinstance(value, list) and value:
        if len(value) > 1:
            yield value[:-1]
        inner = part_of(schema, "items")
        yield from ([other, *value[1:]] for other in _others(value[0], inner, request, right, dice))
    elif isinstance(value, dict):
        for name, item in value.items():
            inner = part_of(schema, "properties", name)
            yield from ({**value, name: other} for other in _others(item, inner, request, right, dice))


def _other_texts(value: str, request: str, right: Mapping[str, Any], dice: random.Random) -> Iterator[str]:
    if DATE.fullmatch(value):
        day = int(value[-2:])
        yield f"{value[:-2]}{day % 28 + 1:02}"
        return
    yield from (item for item in right.values() if isinstance(item, str) and item != value)
    said = [word for word in WORD.findall(request) if len(word) > 3 and word.casefold() not in value.casefold()]
    yield from dice.sample(said, min(len(said), TRIES))
    parts = value.split()
    if len(parts) > 1:
        yield " ".join(parts[:-1])


def _filled(tool: ToolSpec, request: str, known: Mapping[str, Any], dice: random.Random) -> ToolCall | None:
    """A call with what is required, filled with what was said."""
    schema = tool.parameters
    required = [name for name in part_of(schema, "properties") if name in schema.get("required", ())]
    made = {}
    for name in required:
        inner = part_of(schema, "properties", name)
        fitting = [value for value in known.values() if _fits(value, inner)]
        made[name] = dice.choice(fitting) if fitting else _any(inner, request, dice)
    return _call("call_0", tool.name, made) if _fits(made, schema) else None


def _any(schema: Mapping[str, Any], request: str, dice: random.Random) -> Any:
    """Some value that a schema admits, from the request where it can be."""
    if schema.get("enum"):
        return dice.choice(schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        return [_any(part_of(schema, "items"), request, dice)]
    if kind == "object":
        inner = part_of(schema, "properties")
        return {name: _any(part_of(inner, name), request, dice) for name in inner if name in schema.get("required", ())}
    numbers = [int(text) for text in re.findall(r"\b\d{1,9}\b", request)]
    if kind in ("integer", "number"):
        return dice.choice(numbers) if numbers else max(1, int(schema.get("minimum", 1)))
    if kind == "boolean":
        return True
    return dice.choice([word for word in WORD.findall(request) if len(word) > 3] or ["it"])


def _fits(value: Any, schema: Mapping[str, Any]) -> bool:
    return not misfit(value, schema)
