"""What indexing tells: its progress, a report at its end, the state of a collection, and what verify found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands. `share` of the work is done, from 0 to 1; `rate` is in chunks embedded a second."""

    documents: int
    documents_total: int
    chunks: int
    share: float
    rate: float
    seconds: float
    seconds_left: float | None


OnProgress: TypeAlias = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A file that could not be taken in. `stale`: an older version of it is still answered from."""

    document_id: str
    reason: str
    stale: bool = False


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What a run did; in a dry run, what it would do.

    Attributes:
        added, changed, deleted: document ids.
        moved: pairs of old and new id of files that only changed their place; also among `deleted` and `added`.
        unchanged: documents left as they were.
        empty: ids of documents without any text; they are recorded, but no search finds them.
        skipped: files of types that no loader reads, counted by extension.
        chunks: chunks of the documents that were added or changed.
        embedded, reused: chunks whose vectors were computed, and whose vectors were there.
    """

    collection: str
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    moved: tuple[tuple[str, str], ...] = ()
    unchanged: int = 0
    empty: tuple[str, ...] = ()
    quarantined: tuple[Quarantined, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    chunks: int = 0
    embedded: int = 0
    reused: int = 0
    seconds: float = 0.0
    dry_run: bool = False

    @property
    def ok(self) -> bool:
        """Whether every file was taken in."""
        return not self.quarantined


@dataclass(frozen=True, slots=True)
class CollectionStatus:
    """A collection as the manifest has it. `waiting` documents are stored but not searchable until the next run."""

    name: str
    documents: int
    empty: int
    waiting: int
    chunks: int
    characters: int
    embedder: str
    language: str
    chunker: str
    roots: tuple[str, ...] = ()
    quarantined: tuple[Quarantined, ...] = ()


@dataclass(frozen=True, slots=True)
class DocumentInfo:
    """A document in a list."""

    document_id: str
    version: str
    live: bool
    path: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """How store and manifest differ, by point id, and documents whose stored text contradicts their chunks.

    Attributes:
        missing: live chunks without a point.
        extra: points that no live chunk uses.
        stale: points whose payload is not their document's.
        damaged: ids of documents that only indexing again can mend.
        repaired: the differences were mended.
    """

    collection: str
    points: int
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    repaired: bool = False

    @property
    def ok(self) -> bool:
        return (self.repaired and not self.damaged) or not (self.missing or self.extra or self.stale or self.damaged)
