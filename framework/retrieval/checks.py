"""What every store does with its arguments and its ranking, so that all of them refuse and order alike."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from framework.errors import CallerError, Conflict, NotFound
from framework.models.base import Vectors
from framework.retrieval.store import Candidate, Point, Space, SparseVector

MAX_NAME = 128
# Scores are compared after rounding: 32-bit engines differ from each other by less, and equal scores go by id.
DIGITS = 5
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def check_name(kind: str, name: str) -> None:
    """A tenant's or collection's name: 1 to 128 printable characters that neither begin nor end with a space.

    Raises:
        CallerError: it is something else.
    """
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable() or name != name.strip():
        raise CallerError(
            f"{name!r:.80} can't name a {kind}.",
            hint=f"Use 1 to {MAX_NAME} printable characters, none of them a space at either end.",
            field=kind,
        )


def check_points(points: Sequence[Point], dimensions: int) -> list[Vectors]:
    """Each point's dense vector, brought to unit length; the same input gives the same bits in every store.

    Raises:
        CallerError: a point that can't be stored as it is; nothing has been written yet.
    """
    check_ids([point.id for point in points])
    for point in points:
        check_sparse(point.sparse, f"point {point.id}")
        _check_payload(point.payload, point.id)
    return [unit_vector(point.dense, dimensions, f"point {point.id}") for point in points]


def check_ids(ids: Iterable[str]) -> None:
    for id in ids:
        if not (isinstance(id, str) and _UUID.fullmatch(id)):
            raise CallerError(f"The point id {id!r:.80} is not a UUID in lower case.", field="id")


def check_payloads(payloads: Mapping[str, Mapping[str, object]]) -> None:
    check_ids(payloads)
    for id, payload in payloads.items():
        _check_payload(payload, id)


def unit_vector(vector: Vectors, dimensions: int, what: str) -> Vectors:
    """The vector with length 1, as float32."""
    wide = np.asarray(vector, dtype=np.float64)
    if wide.shape != (dimensions,):
        raise CallerError(f"The vector of {what} has shape {wide.shape}, expected ({dimensions},).", field="dense")
    length = float(np.sqrt(wide @ wide))
    if not math.isfinite(length):
        raise CallerError(f"The vector of {what} holds NaN or infinity.", field="dense")
    if length < 1e-12:
        raise CallerError(f"The vector of {what} has length zero, so it has no direction.", field="dense")
    return (wide / length).astype(np.float32)


def check_sparse(sparse: SparseVector, what: str) -> None:
    indices, values = sparse.indices, sparse.values
    if len(indices) != len(values) or len(set(indices)) != len(indices):
        raise CallerError(f"The terms of {what} must be distinct, with one weight each.", field="sparse")
    if any(not 0 <= index < 2**32 for index in indices):
        raise CallerError(f"A term id of {what} is outside 0 to 2^32-1.", field="sparse")
    if any(not (math.isfinite(value) and value > 0) for value in values):
        raise CallerError(f"A term weight of {what} is not a positive number.", field="sparse")


def _check_payload(payload: Mapping[str, object], what: str) -> None:
    for key, value in payload.items():
        if not isinstance(key, str) or not isinstance(value, str | int | float | bool):
            kind = type(value).__name__
            raise CallerError(f"Payload {key!r:.80} of {what} is a {kind}; text, numbers and booleans are stored.")
        if isinstance(value, int | float) and not abs(value) <= sys.float_info.max:
            raise CallerError(f"Payload {key!r:.80} of {what} is NaN or beyond the range of a 64-bit float.")


def check_count(n: int) -> None:
    if n < 1:
        raise CallerError(f"A query must ask for at least one point, got {n}.", field="n")


def best(found: Callable[[int], list[Candidate]], n: int) -> list[Candidate]:
    """The n best of an engine that breaks ties its own way: equal scores go by id, at the cut too.

    `found(m)` gives the engine's own top m. It is asked for more while the cut falls inside a run of equal scores.
    """
    limit = n + 8
    while True:
        candidates = found(limit)
        if len(candidates) < limit or candidates[-1].score < candidates[n - 1].score:
            return ranked(candidates)[:n]
        limit *= 4


def ranked(candidates: Iterable[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda candidate: (-candidate.score, candidate.id))


def collection_not_found(collection: str) -> NotFound:
    return NotFound(f"There is no collection {collection!r:.140}.", hint="List them with: lectern collections list")


def space_conflict(collection: str, present: Space, asked: Space) -> Conflict:
    return Conflict(
        f"The collection {collection!r} holds {present}, not {asked}.",
        hint=f"Index it again with: lectern index PATH -c {collection} --rebuild",
        field="collection",
    )
