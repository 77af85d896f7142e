"""Rows of the manifest as objects, and back."""

from __future__ import annotations

import json
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any, TypeAlias, TypeVar

from framework.documents import Chunk, Document, Hit, Metadata, Section
from framework.errors import StoreCorrupt
from framework.retrieval.store import Space

T = TypeVar("T")
RESTORE = "Restore it from a backup, or move it away and make its collections anew: lectern index PATH -c NAME"
Row: TypeAlias = tuple[Any, ...]
COLLECTION = "id, tenant, name, space, embedder_name, chunker"
DOCUMENT = "document_id, text, title, source, media_type, metadata, sections, page_starts"
CHUNK = "c.point_id, c.first, c.last, c.ordinal, c.occurrence, c.context, c.heading_path, c.page, c.text, d.document_id"
OWNER = "point_id, d.document_id FROM chunks JOIN documents AS d ON d.id = document"
HITS = f"""
    SELECT {CHUNK}, d.version, d.title, d.source, d.metadata
    FROM json_each(?) AS wanted
    CROSS JOIN chunks AS c ON c.point_id = wanted.value
    JOIN documents AS d ON d.id = c.document
    WHERE d.collection = (SELECT id FROM collections WHERE tenant = ? AND name = ?) AND d.live
"""


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection's row: `embedder_name` is what people call the embedder whose id is in the space."""

    id: int
    tenant: str
    name: str
    space: Space
    embedder_name: str
    chunker: str


@dataclass(frozen=True, slots=True)
class FileFacts:
    """Where a document came from, and what tells cheaply that the file is the same. Empty for a Python caller's."""

    root: str = ""
    path: str = ""
    size: int = 0
    mtime_ns: int = 0
    hash: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """What the manifest knows of a document, without its text. `reason` is set for a quarantined file."""

    document_id: str
    file: FileFacts
    version: str = ""
    live: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Indexed:
    """A document ready to go live: its chunks, and their point ids in the same order."""

    document: Document
    file: FileFacts
    chunks: Sequence[Chunk]
    ids: Sequence[str]


def _whole(read: Callable[[Row], T]) -> Callable[[Row], T]:
    """`read` as a function that tells of a damaged row: SQLite keeps no checksums and hands out what it finds."""

    @wraps(read)
    def told(row: Row) -> T:
        try:
            return read(row)
        except (ValueError, TypeError, zlib.error) as error:
            raise StoreCorrupt(
                f"The manifest holds a damaged row, of {row[0]!r:.80}: {error}.", hint=RESTORE
            ) from error

    return told


@_whole
def collection(row: Row) -> Collection:
    """A row of the columns COLLECTION."""
    return Collection(row[0], row[1], row[2], Space(**json.loads(row[3])), row[4], row[5])


@_whole
def document(row: Row) -> Document:
    """A row that starts with the columns DOCUMENT."""
    id, text, title, source, media_type, metadata, sections, page_starts = row[:8]
    return Document(
        id,
        zlib.decompress(text).decode("utf-8"),
        title,
        source,
        media_type,
        json.loads(metadata),
        tuple(Section(tuple(path), start, end) for path, start, end in json.loads(sections)),
        tuple(json.loads(page_starts)),
    )


@_whole
def chunk(row: Row) -> Chunk:
    """A row that starts with the columns CHUNK."""
    _, first, last, ordinal, occurrence, context, heading_path, page, text, document_id = row[:10]
    return Chunk(document_id, text, first, last, ordinal, occurrence, context, _path(heading_path), page)


@_whole
def hit(row: Row) -> Hit:
    """A row of HITS."""
    version, title, source, metadata = row[10:]
    return Hit(row[0], chunk(row), version, 0.0, {}, title, source, _metadata(metadata))


def insert(connection: sqlite3.Connection, owner: Collection, item: Indexed) -> None:
    """A document with its chunks, live."""
    document, file = item.document, item.file
    cursor = connection.execute(
        "INSERT INTO documents (collection, document_id, root, path, size, mtime_ns, file_hash, version, live, "
        "indexed, title, source, media_type, metadata, sections, page_starts, characters, text) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(owner.id, document.id, file.root, file.path, file.size, file.mtime_ns, file.hash, document.version),
            *(time.time(), document.title, document.source, document.media_type, json.dumps(dict(document.metadata))),
            *(json.dumps([(s.path, s.start, s.end) for s in document.sections]), json.dumps(document.page_starts)),
            *(len(document.text), zlib.compress(document.text.encode("utf-8"), 6)),
        ),
    )
    connection.executemany(
        "INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                id,
                cursor.lastrowid,
                c.ordinal,
                c.occurrence,
                c.start,
                c.end,
                c.page,
                c.context,
                json.dumps(c.heading_path),
                c.text,
            )
            for id, c in zip(item.ids, item.chunks, strict=True)
        ],
    )


def add_pending(connection: sqlite3.Connection, owner: Collection, ids: Iterable[str]) -> None:
    connection.executemany("INSERT OR IGNORE INTO pending VALUES (?, ?)", [(owner.id, id) for id in ids])


def delete_pending(connection: sqlite3.Connection, owner: Collection, ids: Iterable[str]) -> None:
    connection.executemany("DELETE FROM pending WHERE collection = ? AND point_id = ?", [(owner.id, id) for id in ids])


@lru_cache(maxsize=4096)
def _path(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text))


@lru_cache(maxsize=4096)
def _metadata(text: str) -> Metadata:
    return dict(json.loads(text))
