"""Tool calls as they are expected and compared: the Berkeley Function Calling Leaderboard's files and rules.

An item names its conversation, its functions and, where a call is right, the accepted values of each argument:

    {"id": "...", "question": [[{"role": "user", "content": "..."}]],
     "function": [{"name": "...", "description": "...", "parameters": {"type": "dict", ...}}],
     "ground_truth": [{"name": {"argument": ["accepted", "values"]}}]}

Values are compared as its checker does: strings without case, spaces and most marks, numbers by value, an argument
with "" among its values may be left out. Names with dots get underscores, since most models' interfaces refuse dots.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from framework.errors import ConfigError
from framework.messages import Message, ToolSpec
from framework.models.json_schema import misfit

TYPES = {"dict": "object", "float": "number", "tuple": "array", "double": "number", "any": None, "": None}
IGNORED = re.compile(r"[ ,./\-_*^]")  # marks that do not count in a string
LEFT_OUT = ""


@dataclass(frozen=True, slots=True)
class Expected:
    """A call that is right: its tool, and the accepted values of each argument."""

    name: str
    arguments: Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Called:
    """A call that a target made; `arguments` is JSON text as the model wrote it."""

    name: str
    arguments: str

    def values(self) -> dict[str, Any] | None:
        """The arguments; None where they are no JSON object."""
        try:
            read = json.loads(self.arguments)
        except (ValueError, RecursionError):
            return None
        return read if isinstance(read, dict) else None


def conversation(row: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    """The messages of an item's only turn.

    Raises:
        ConfigError: there is none, or more than one.
    """
    turns = row.get("question")
    if not isinstance(turns, list) or len(turns) != 1 or not isinstance(turns[0], list) or not turns[0]:
        raise ConfigError(f"{where}: question is a list of one turn, which is a list of messages.")
    try:
        return tuple(Message(message["role"], str(message["content"])) for message in turns[0])
    except (TypeError, KeyError) as error:
        raise ConfigError(f"{where}: a message has role and content, {error} is missing.") from error


def tool_specs(row: Mapping[str, Any], where: str) -> tuple[ToolSpec, ...]:
    """An item's functions as tools.

    Raises:
        ConfigError: there are none, or one has no name or parameters.
    """
    listed = row.get("function")
    functions = [listed] if isinstance(listed, dict) else listed
    if not isinstance(functions, list) or not functions:
        raise ConfigError(f"{where} has no function.")
    found = []
    for function in functions:
        if not isinstance(function, dict) or not isinstance(function.get("parameters"), dict) or "name" not in function:
            raise ConfigError(f"{where}: a function has name, description and parameters.")
        name, text = str(function["name"]), str(function.get("description", ""))
        found.append(ToolSpec(plain_name(name), text, json_schema(function["parameters"])))
    return tuple(found)


def expected_calls(row: Mapping[str, Any], where: str) -> tuple[Expected, ...]:
    """An item's calls; none where no call is right."""
    found = []
    for call in row.get("ground_truth") or ():
        if not isinstance(call, dict) or len(call) != 1:
            raise ConfigError(f"{where}: ground_truth is a list of objects with one function each.")
        ((name, arguments),) = call.items()
        values = {key: tuple(v) if isinstance(v, list) else (v,) for key, v in arguments.items()}
        found.append(Expected(plain_name(name), values))
    return tuple(found)


def plain_name(name: str) -> str:
    return name.replace(".", "_")


def json_schema(node: Any) -> Any:
    """A schema in the leaderboard's words as a JSON schema."""
    if isinstance(node, list):
        return [json_schema(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    read: dict[str, Any] = {}
    for key, value in node.items():
        if key == "type" and isinstance(value, str):
            named = TYPES.get(value.lower(), value.lower())
            if named is not None:
                read[key] = named
        elif key == "properties" and isinstance(value, Mapping):
            read[key] = {name: json_schema(schema) for name, schema in value.items()}
        elif key in ("default", "enum", "required"):
            read[key] = value
        elif key != "optional":
            read[key] = json_schema(value)
    return read


def valid(call: Called, tools: Sequence[ToolSpec]) -> bool:
    """The tool is offered, and its schema allows the arguments."""
    values = call.values()
    tool = next((tool for tool in tools if tool.name == call.name), None)
    if tool is None or values is None:
        return False
    known = tool.parameters.get("properties", {})
    return not misfit(values, tool.parameters) and not values.keys() - known.keys()


def all_right(calls: Sequence[Called], expected: Sequence[Expected]) -> bool:
    """Each call is one of those expected, in any order, and none is missing."""
    if len(calls) != len(expected):
        return False
    if not calls:
        return True
    return any(
        right(calls[0], one) and all_right(calls[1:], [*expected[:place], *expected[place + 1 :]])
        for place, one in enumerate(expected)
    )


def right(call: Called, expected: Expected) -> bool:
    """The tool is the right one, and so is each argument."""
    values = call.values()
    return call.name == expected.name and values is not None and _fits(values, expected.arguments)


def _fits(values: Mapping[str, Any], accepted: Mapping[str, Sequence[Any]]) -> bool:
    if values.keys() - accepted.keys():
        return False
    return all(
        any(_same(values[name], one) for one in options) if name in values else LEFT_OUT in options
        for name, options in accepted.items()
    )


def _same(value: Any, accepted: Any) -> bool:
    if isinstance(value, bool) or isinstance(accepted, bool):
        return value is accepted
    if isinstance(value, str) and isinstance(accepted, str):
        return _bare(value) == _bare(accepted)
    if isinstance(value, int | float) and isinstance(accepted, int | float):
        return bool(value == accepted)
    if isinstance(value, list) and isinstance(accepted, list):
        return len(value) == len(accepted) and all(_same(a, b) for a, b in zip(value, accepted, strict=True))
    if isinstance(value, dict) and isinstance(accepted, dict):
        return _fits(value, {key: v if isinstance(v, list) else [v] for key, v in accepted.items()})
    return value is None and accepted is None


def _bare(text: str) -> str:
    return IGNORED.sub("", text).lower().replace("'", '"')
