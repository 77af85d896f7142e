"""JSON schemas of tools from data files, checked when they are read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from framework.errors import CallerError
from framework.models.json_schema import bound, measure


def schema_fault(schema: Mapping[str, Any]) -> str:
    """Why no model can be held to a tool's parameters; empty where one can.

    They refer to another document or to nothing, are too large, are no JSON schema, or have what decoding can't
    enforce.
    """
    try:
        measure(schema, "parameters")
    except CallerError as error:
        return str(error)
    return _fault(json.dumps(schema, sort_keys=True))


def part_of(schema: Any, *path: str) -> Mapping[str, Any]:
    """The schema at a path of keys; one that allows anything where there is none, or a truth value instead."""
    for key in path:
        schema = schema.get(key) if isinstance(schema, Mapping) else None
    return schema if isinstance(schema, Mapping) else {}


@lru_cache(maxsize=4096)  # many rows offer the same tools
def _fault(text: str) -> str:
    schema = json.loads(text)
    dialects = [node["$schema"] for node in _objects(schema) if not isinstance(node.get("$schema", {}), Mapping)]
    known = [dialect for dialect in dialects if isinstance(dialect, str) and "draft-03" not in dialect]
    if dialects and known != [schema.get("$schema")]:
        return f"The schema names {dialects[-1]!r:.80} as its dialect; one from draft 4 on may be named, at the top."
    for node in _objects(schema):
        for pattern in (node.get("pattern"), *part_of(node, "patternProperties")):
            if isinstance(pattern, str) and (wrong := _unreadable(pattern)):
                return f"The schema's pattern {pattern!r:.80} can't be read: {wrong}."
    try:
        bound(schema, "parameters")
    except CallerError as error:
        return str(error)
    return ""


def _unreadable(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return str(error)
    return ""


def _objects(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Every JSON object within, itself included."""
    waiting = [schema]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            yield item
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
