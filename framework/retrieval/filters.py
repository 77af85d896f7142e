"""Typed filters over payload fields. Keys and values are literals: no path syntax, no pattern, no code.

`matches` is the meaning; each store translates the same tree into its own query language, and the contract suite holds
it to this meaning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from framework.documents import Scalar
from framework.errors import CallerError

MAX_VALUE = 65_536


@dataclass(frozen=True, slots=True)
class Eq:
    """The field is present and equals the value; True and 1 are different values, 1 and 1.0 the same."""

    key: str
    value: Scalar


@dataclass(frozen=True, slots=True)
class In:
    """The field is present and equals one of the values."""

    key: str
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """The field is a number (not a boolean) within the given bounds, each inclusive; None leaves a side open.

    Numbers are compared as 64-bit floats, so integers beyond 2^53 are compared rounded.

    Raises:
        CallerError: a bound is NaN.
    """

    key: str
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        for bound in (self.at_least, self.at_most):
            if bound is not None and bound != bound:
                raise CallerError(f"A bound of the range over {self.key!r:.80} is NaN.", field="filter")


@dataclass(frozen=True, slots=True)
class Not:
    part: Filter


@dataclass(frozen=True, slots=True)
class All:
    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    parts: tuple[Filter, ...]


Filter: TypeAlias = Eq | In | Range | Not | All | AnyOf


def matches(filter: Filter, payload: Mapping[str, Scalar]) -> bool:
    """Whether a payload passes: the reference that every store's translation is tested against."""
    match filter:
        case Eq(key, value):
            return key in payload and _same(payload[key], value)
        case In(key, values):
            return key in payload and any(_same(payload[key], value) for value in values)
        case Range(key, low, high):
            number = payload.get(key)
            if isinstance(number, bool) or not isinstance(number, int | float):
                return False
            value = as_float(number)
            return (low is None or value >= as_float(low)) and (high is None or value <= as_float(high))
        case Not(part):
            return not matches(part, payload)
        case All(parts):
            return all(matches(part, payload) for part in parts)
        case AnyOf(parts):
            return any(matches(part, payload) for part in parts)


def parse_filter(expressions: tuple[str, ...]) -> Filter | None:
    """`key=value` expressions of the command line, all of which must hold; a value that reads as a number or as
    true/false also matches the text form.

    Raises:
        CallerError: an expression without "=", or an overlong one.
    """
    parts = tuple(_equality(expression) for expression in expressions)
    return All(parts) if parts else None


def _equality(expression: str) -> Filter:
    key, separator, text = expression.partition("=")
    if not separator or not key:
        raise CallerError(f"The filter {expression[:80]!r} has no key=value form.", field="filter")
    if len(expression) > MAX_VALUE:
        raise CallerError(f"A filter has {len(expression)} characters; {MAX_VALUE} are allowed.", field="filter")
    if text in ("true", "false"):
        return In(key, (text, text == "true"))
    try:
        return In(key, (text, int(text)))
    except ValueError:
        pass
    try:
        return In(key, (text, float(text)))
    except ValueError:
        return Eq(key, text)


def as_float(number: float) -> float:
    """The number as a 64-bit float; an integer beyond its range becomes infinite."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _same(left: Scalar, right: Scalar) -> bool:
    return isinstance(left, bool) is isinstance(right, bool) and left == right
