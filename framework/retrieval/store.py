"""The meeting point of indexing and search: what every vector store does, and nothing more.

A store keeps points (dense vector, BM25 term weights, filterable payload) and answers top-n under a filter. It decides
nothing: which version of a document is live, where a chunk stands and what it says is the `Corpus`'s business, and
fusion, MMR and reranking are ours (`fusion`, `mmr`, `retriever`), so every store gives the same ranking.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from framework.documents import Document, Hit, Scalar
from framework.models.base import Vectors
from framework.retrieval.filters import Filter


@dataclass(frozen=True, slots=True)
class SparseVector:
    """Term ids and their BM25 weights, without IDF: the store multiplies by the IDF of the tenant's live points."""

    indices: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Space:
    """What a collection's vectors are: recorded when it is made, compared when it is opened.

    Attributes:
        embedder: `EmbedderInfo.id`.
        dimensions: width of a dense vector.
        language: the analyzer's language for BM25 ("en", "zh", ...), ISO 639-1.
        average_length: the fixed average chunk length of BM25, in terms; 150 fits chunks of 200 tokens.
        analyzer: version of the rules that turn text into terms and weights (`bm25.VERSION`).
    """

    embedder: str
    dimensions: int
    language: str = "en"
    average_length: float = 150.0
    analyzer: int = 1


@dataclass(frozen=True, slots=True)
class Point:
    """One chunk as stored. `payload` holds what filters may name; keys are literal, never paths."""

    id: str
    dense: Vectors
    sparse: SparseVector
    payload: Mapping[str, Scalar] = field(default_factory=dict)


class Candidate(NamedTuple):
    """A stored point that a query found, best first; ties are ordered by id. `dense` is there when asked for.

    A tuple, since hundreds of them are made for every query.
    """

    id: str
    score: float
    dense: Vectors | None = None


@runtime_checkable
class VectorStore(Protocol):
    """Points of many collections, each of one tenant. Safe to call from several threads.

    Every method names tenant and collection; a collection that does not exist raises `NotFound`, also when it exists
    under another tenant. The contract is proved by `framework.testing.store_contract`.
    """

    def create(self, tenant: str, collection: str, space: Space) -> None:
        """Make an empty collection; the same space again is no error, another one is a `Conflict`."""
        ...

    def drop(self, tenant: str, collection: str) -> None:
        """Remove a collection and its points; removing one that is not there is no error."""
        ...

    def space(self, tenant: str, collection: str) -> Space: ...

    def upsert(self, tenant: str, collection: str, points: Sequence[Point]) -> None:
        """Insert or replace by id.

        Raises:
            CallerError: a vector of wrong dimension, with NaN or infinity, or of length zero. Nothing is written then.
        """
        ...

    def set_payload(self, tenant: str, collection: str, payloads: Mapping[str, Mapping[str, Scalar]]) -> None:
        """Replace the whole payload of existing points, by id; vectors stay."""
        ...

    def delete(self, tenant: str, collection: str, ids: Sequence[str]) -> None:
        """Remove points; ids that are not there are no error."""
        ...

    def flush(self, tenant: str, collection: str) -> None:
        """Return when everything acknowledged before is on disk."""
        ...

    def dense(
        self,
        tenant: str,
        collection: str,
        vector: Vectors,
        n: int,
        filter: Filter | None = None,
        vectors: bool = False,
    ) -> list[Candidate]:
        """The n nearest points by cosine similarity, in [-1, 1]."""
        ...

    def lexical(
        self,
        tenant: str,
        collection: str,
        terms: SparseVector,
        n: int,
        filter: Filter | None = None,
        vectors: bool = False,
    ) -> list[Candidate]:
        """The n best points by BM25, IDF = ln(1 + (N - df + 1/2) / (df + 1/2)) over the collection's points.

        Points that share no term with the query are not returned.
        """
        ...

    def vectors(self, tenant: str, collection: str, ids: Sequence[str]) -> dict[str, Vectors]:
        """Dense vectors by id; ids that are not there are left out."""
        ...

    def payloads(self, tenant: str, collection: str) -> Iterator[tuple[str, Mapping[str, Scalar]]]:
        """Every point's id and payload, in order of id: what `verify` compares with the manifest."""
        ...

    def count(self, tenant: str, collection: str) -> int: ...

    def close(self) -> None: ...


@runtime_checkable
class Corpus(Protocol):
    """The truth about documents that hits and citations are checked against; `indexers.manifest` implements it."""

    def hits(self, tenant: str, collection: str, ids: Sequence[str]) -> dict[str, Hit]:
        """The chunks of live versions among these point ids, read in one transaction; all others are left out.

        `Hit.score` is 0; the caller sets it.
        """
        ...

    def document(self, tenant: str, collection: str, document_id: str, version: str | None = None) -> Document:
        """The stored document with its whole text; None asks for the live version.

        Raises:
            NotFound: no such document, or that version is no longer stored.
        """
        ...
