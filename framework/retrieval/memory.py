"""Every store's reference: points in dictionaries, exact search with numpy. Keeps nothing on disk."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from framework.documents import Scalar
from framework.models.base import Vectors
from framework.retrieval.bm25 import inverse_document_frequency
from framework.retrieval.checks import (
    DIGITS,
    check_count,
    check_ids,
    check_name,
    check_payloads,
    check_points,
    check_sparse,
    collection_not_found,
    ranked,
    space_conflict,
    unit_vector,
)
from framework.retrieval.filters import Filter, matches
from framework.retrieval.store import Candidate, Point, Space, SparseVector


@dataclass(slots=True)
class _Collection:
    """Points by id, and the weight of each term by point. `matrix` is made again after a change."""

    space: Space
    points: dict[str, Point] = field(default_factory=dict)
    terms: dict[int, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    matrix: Vectors | None = None
    ids: list[str] = field(default_factory=list)

    def put(self, point: Point) -> None:
        self.remove(point.id)
        self.points[point.id] = point
        for term, weight in zip(point.sparse.indices, point.sparse.values, strict=True):
            self.terms[term][point.id] = weight

    def remove(self, id: str) -> None:
        self.matrix = None
        point = self.points.pop(id, None)
        for term in point.sparse.indices if point else ():
            del self.terms[term][id]

    def rows(self) -> tuple[list[str], Vectors]:
        if self.matrix is None:
            self.ids = sorted(self.points)
            self.matrix = np.stack([self.points[id].dense for id in self.ids]).astype(np.float64)
        return self.ids, self.matrix

    def passing(self, filter: Filter | None) -> Mapping[str, Point]:
        if filter is None:
            return self.points
        return {id: point for id, point in self.points.items() if matches(filter, point.payload)}


class MemoryStore:
    """`VectorStore` in this process's memory, for tests and for small one-off collections."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._collections: dict[tuple[str, str], _Collection] = {}

    def create(self, tenant: str, collection: str, space: Space) -> None:
        check_name("tenant", tenant)
        check_name("collection", collection)
        with self._lock:
            present = self._collections.setdefault((tenant, collection), _Collection(space))
        if present.space != space:
            raise space_conflict(collection, present.space, space)

    def drop(self, tenant: str, collection: str) -> None:
        with self._lock:
            self._collections.pop((tenant, collection), None)

    def space(self, tenant: str, collection: str) -> Space:
        return self._get(tenant, collection).space

    def upsert(self, tenant: str, collection: str, points: Sequence[Point]) -> None:
        target = self._get(tenant, collection)
        vectors = check_points(points, target.space.dimensions)
        with self._lock:
            for point, vector in zip(points, vectors, strict=True):
                target.put(replace(point, dense=vector, payload=dict(point.payload)))

    def set_payload(self, tenant: str, collection: str, payloads: Mapping[str, Mapping[str, Scalar]]) -> None:
        target = self._get(tenant, collection)
        check_payloads(payloads)
        with self._lock:
            for id, payload in payloads.items():
                if id in target.points:
                    target.points[id] = replace(target.points[id], payload=dict(payload))

    def delete(self, tenant: str, collection: str, ids: Sequence[str]) -> None:
        target = self._get(tenant, collection)
        check_ids(ids)
        with self._lock:
            for id in ids:
                target.remove(id)

    def flush(self, tenant: str, collection: str) -> None:
        self._get(tenant, collection)

    def dense(
        self,
        tenant: str,
        collection: str,
        vector: Vectors,
        n: int,
        filter: Filter | None = None,
        vectors: bool = False,
    ) -> list[Candidate]:
        target = self._get(tenant, collection)
        check_count(n)
        query = unit_vector(vector, target.space.dimensions, "the query")
        with self._lock:
            passing = target.passing(filter)
            if not passing:
                return []
            ids, matrix = target.rows()
            # In 64 bits, so that equal vectors have equal scores wherever they stand in the matrix.
            scores = zip(ids, (matrix @ query.astype(np.float64)).tolist(), strict=True)
            return _top({id: score for id, score in scores if id in passing}, n, passing, vectors)

    def lexical(
        self,
        tenant: str,
        collection: str,
        terms: SparseVector,
        n: int,
        filter: Filter | None = None,
        vectors: bool = False,
    ) -> list[Candidate]:
        target = self._get(tenant, collection)
        check_count(n)
        check_sparse(terms, "the query")
        with self._lock:
            passing = target.passing(filter)
            scores: dict[str, float] = defaultdict(float)
            for term, count in zip(terms.indices, terms.values, strict=True):
                holders = target.terms.get(term, {})
                idf = inverse_document_frequency(len(target.points), len(holders))
                for id, weight in holders.items():
                    if id in passing:
                        scores[id] += count * idf * weight
            return _top(scores, n, passing, vectors)

    def vectors(self, tenant: str, collection: str, ids: Sequence[str]) -> dict[str, Vectors]:
        target = self._get(tenant, collection)
        check_ids(ids)
        with self._lock:
            return {id: target.points[id].dense for id in ids if id in target.points}

    def payloads(self, tenant: str, collection: str) -> Iterator[tuple[str, Mapping[str, Scalar]]]:
        target = self._get(tenant, collection)
        with self._lock:
            return iter([(id, dict(target.points[id].payload)) for id in sorted(target.points)])

    def count(self, tenant: str, collection: str) -> int:
        return len(self._get(tenant, collection).points)

    def close(self) -> None:
        """Nothing is held."""

    def _get(self, tenant: str, collection: str) -> _Collection:
        with self._lock:
            found = self._collections.get((tenant, collection))
        if found is None:
            raise collection_not_found(collection)
        return found


def _top(scores: Mapping[str, float], n: int, points: Mapping[str, Point], vectors: bool) -> list[Candidate]:
    order = ranked(Candidate(id, round(score, DIGITS)) for id, score in scores.items())[:n]
    return [candidate._replace(dense=points[candidate.id].dense) for candidate in order] if vectors else order
