"""Documents, their chunks, and what a search returns of them.

Spans are half-open ranges of Unicode code points into a document version's extracted text: `text[start:end]`.
Identities are content hashes, so that writing the same thing twice changes nothing.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

Scalar: TypeAlias = str | int | float | bool
Metadata: TypeAlias = Mapping[str, Scalar]

_POINTS = uuid.UUID("6f0c1a52-5f43-5d57-9d5b-2f7e0c1b7a11")


def content_hash(*parts: str) -> str:
    """SHA-256 over the parts, 32 hex digits. Parts are length-prefixed: ("ab", "c") differs from ("a", "bc")."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()[:32]


def is_text(name: str) -> bool:
    """Whether a name can be stored and shown. A file's that is not UTF-8 reaches Python with lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


@dataclass(frozen=True, slots=True)
class Section:
    """A heading's reach: `path` holds the headings from the outermost to this one, the span covers its whole body."""

    path: tuple[str, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Document:
    """One source, extracted. `id` is stable across versions (for a file: its path below the indexed root)."""

    id: str
    text: str
    title: str = ""
    source: str = ""
    media_type: str = "text/plain"
    metadata: Metadata = field(default_factory=dict)
    sections: tuple[Section, ...] = ()
    page_starts: tuple[int, ...] = ()

    @property
    def version(self) -> str:
        """Content hash of everything that a reader or a search can see of this version."""
        meta = [f"{key}={self.metadata[key]!r}" for key in sorted(self.metadata)]
        shape = [f"{s.path}{s.start}:{s.end}" for s in self.sections]
        return content_hash(self.text, self.title, self.source, self.media_type, repr(self.page_starts), *meta, *shape)

    def page_at(self, position: int) -> int | None:
        """The page, counted from 1, that the code point at `position` is on; None where the source has no pages."""
        if not self.page_starts:
            return None
        return max(1, sum(1 for start in self.page_starts if start <= position))


@dataclass(frozen=True, slots=True)
class Chunk:
    """A span of a document version, as embedded. `context` (title and headings) is embedded in front of `text`."""

    document_id: str
    text: str
    start: int
    end: int
    ordinal: int
    occurrence: int = 0
    context: str = ""
    heading_path: tuple[str, ...] = ()
    page: int | None = None

    @property
    def embedded_text(self) -> str:
        """What the embedder and the lexical index see; its token count never exceeds the embedder's limit."""
        return f"{self.context}\n{self.text}" if self.context else self.text

    @property
    def hash(self) -> str:
        return content_hash(self.embedded_text)


def point_id(tenant: str, collection: str, chunk: Chunk) -> str:
    """The UUID under which a chunk is stored: equal paragraphs of two documents, or of one, stay separate points."""
    key = content_hash(tenant, collection, chunk.document_id, chunk.hash, str(chunk.occurrence))
    return str(uuid.uuid5(_POINTS, key))


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that a search found, checked against the live version of its document.

    `scores` holds each stage's own score under its name (dense: cosine; lexical: BM25; dbsf or rrf; rerank; mmr).
    `score` is the last stage's, the one that the hits are ordered by.
    """

    id: str
    chunk: Chunk
    version: str
    score: float
    scores: Mapping[str, float] = field(default_factory=dict)
    title: str = ""
    source: str = ""
    metadata: Metadata = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Citation:
    """A quotation and where it stands. `quote == text[start:end]` of the named document version."""

    number: int
    document_id: str
    version: str
    start: int
    end: int
    quote: str
    title: str = ""
    source: str = ""
    heading_path: tuple[str, ...] = ()
    page: int | None = None
