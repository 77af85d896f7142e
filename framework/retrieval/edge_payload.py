"""Payloads and filters in a form that Qdrant Edge can't misread.

Edge reads filter keys as JSON paths and knows no typed equality. So a point carries, beside its payload as one JSON
text, a list of tokens (each a hash of key, type and value) and its numbers under the hash of their key. Equality is
then the presence of a token, whatever characters key and value hold and however long they are; one index serves all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from framework.documents import Scalar, content_hash
from framework.retrieval.filters import All, AnyOf, Eq, Filter, In, Not, Range, as_float

if TYPE_CHECKING:
    import qdrant_edge

TOKENS = "tokens"
NUMBERS = "numbers"
ORIGINAL = "payload"


def encode(payload: Mapping[str, Scalar]) -> dict[str, Any]:
    numbers = {
        content_hash(key): as_float(value)
        for key, value in payload.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return {
        TOKENS: [_token(key, value) for key, value in payload.items()],
        NUMBERS: numbers,
        ORIGINAL: json.dumps(dict(payload)),
    }


def decode(stored: Mapping[str, Any]) -> dict[str, Scalar]:
    payload: dict[str, Scalar] = json.loads(stored[ORIGINAL])
    return payload


def number_path(key: str) -> str:
    """Where the number under this key stands, as a JSON path."""
    return f"{NUMBERS}.{content_hash(key)}"


def translate(filter: Filter) -> qdrant_edge.Filter:
    """The same condition in Edge's terms: it passes the points that `filters.matches` passes."""
    from qdrant_edge import FieldCondition, MatchAny, RangeFloat
    from qdrant_edge import Filter as EdgeFilter

    match filter:
        case Eq(key, value):
            return EdgeFilter(must=[FieldCondition(TOKENS, match=MatchAny([_token(key, value)]))])
        case In(key, values):
            return EdgeFilter(must=[FieldCondition(TOKENS, match=MatchAny([_token(key, value) for value in values]))])
        case Range(key, low, high):
            bounds = RangeFloat(
                gte=float("-inf") if low is None else as_float(low), lte=None if high is None else as_float(high)
            )
            return EdgeFilter(must=[FieldCondition(number_path(key), range=bounds)])
        case Not(part):
            return EdgeFilter(must_not=[translate(part)])
        case All(parts):
            return EdgeFilter(must=[translate(part) for part in parts])
        case AnyOf(parts):
            # An empty `should` would pass everything.
            return EdgeFilter(should=[translate(part) for part in parts]) if parts else translate(In("", ()))


def _token(key: str, value: Scalar) -> str:
    if isinstance(value, bool):
        return content_hash(key, "boolean", str(value))
    if isinstance(value, str):
        return content_hash(key, "text", value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return content_hash(key, "number", f"{value:x}" if isinstance(value, int) else value.hex())
