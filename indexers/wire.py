"""Filters as JSON and back; each node names its kind."""

from __future__ import annotations

from typing import Any

from framework.errors import CallerError
from framework.retrieval.filters import All, AnyOf, Eq, Filter, In, Not, Range

MAX_DEPTH = 50


def filter_to_wire(filter: Filter) -> dict[str, Any]:
    match filter:
        case Eq(key, value):
            return {"eq": [key, value]}
        case In(key, values):
            return {"in": [key, list(values)]}
        case Range(key, low, high):
            return {"range": [key, low, high]}
        case Not(part):
            return {"not": filter_to_wire(part)}
        case All(parts):
            return {"all": [filter_to_wire(part) for part in parts]}
        case AnyOf(parts):
            return {"any": [filter_to_wire(part) for part in parts]}


def filter_from_wire(wire: Any, depth: int = 0) -> Filter:
    """Raises CallerError where the value is no filter, or nests deeper than MAX_DEPTH."""
    match wire:
        case _ if depth > MAX_DEPTH:
            raise CallerError(f"A filter nests deeper than {MAX_DEPTH}.", field="filter")
        case {"eq": [str(key), str() | int() | float() | bool() as value]}:
            return Eq(key, value)
        case {"in": [str(key), [*values]]} if all(isinstance(value, str | int | float | bool) for value in values):
            return In(key, tuple(values))
        case {"range": [str(key), int() | float() | None as low, int() | float() | None as high]}:
            return Range(key, low, high)
        case {"not": part}:
            return Not(filter_from_wire(part, depth + 1))
        case {"all": [*parts]}:
            return All(tuple(filter_from_wire(part, depth + 1) for part in parts))
        case {"any": [*parts]}:
            return AnyOf(tuple(filter_from_wire(part, depth + 1) for part in parts))
        case _:
            raise CallerError(f"{wire!r:.80} is no filter.", field="filter")
