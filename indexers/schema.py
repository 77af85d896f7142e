"""The manifest's SQLite schema: one script a version, applied in order; a script that was released never changes."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import suppress

from framework.errors import OperatorError, StoreCorrupt

MIGRATIONS = (
    """
    CREATE TABLE collections (
        id INTEGER PRIMARY KEY, tenant TEXT NOT NULL, name TEXT NOT NULL,
        space TEXT NOT NULL, embedder_name TEXT NOT NULL, chunker TEXT NOT NULL, created REAL NOT NULL,
        UNIQUE (tenant, name)
    );
    CREATE TABLE documents (
        id INTEGER PRIMARY KEY,
        collection INTEGER NOT NULL REFERENCES collections ON DELETE CASCADE,
        document_id TEXT NOT NULL,
        root TEXT NOT NULL, path TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
        file_hash TEXT NOT NULL,
        version TEXT NOT NULL, live INTEGER NOT NULL, indexed REAL NOT NULL,
        title TEXT NOT NULL, source TEXT NOT NULL, media_type TEXT NOT NULL, metadata TEXT NOT NULL,
        sections TEXT NOT NULL, page_starts TEXT NOT NULL, characters INTEGER NOT NULL,
        text BLOB NOT NULL,
        UNIQUE (collection, document_id)
    );
    CREATE TABLE chunks (
        point_id TEXT PRIMARY KEY,
        document INTEGER NOT NULL REFERENCES documents ON DELETE CASCADE,
        ordinal INTEGER NOT NULL, occurrence INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
        page INTEGER, context TEXT NOT NULL, heading_path TEXT NOT NULL, text TEXT NOT NULL
    );
    CREATE INDEX chunks_by_document ON chunks (document, ordinal);
    CREATE TABLE pending (
        collection INTEGER NOT NULL REFERENCES collections ON DELETE CASCADE, point_id TEXT NOT NULL,
        PRIMARY KEY (collection, point_id)
    ) WITHOUT ROWID;
    CREATE TABLE quarantine (
        collection INTEGER NOT NULL REFERENCES collections ON DELETE CASCADE, document_id TEXT NOT NULL,
        root TEXT NOT NULL, path TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
        reason TEXT NOT NULL, since REAL NOT NULL,
        PRIMARY KEY (collection, document_id)
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE vectors (
        id INTEGER PRIMARY KEY, embedder TEXT NOT NULL, hash TEXT NOT NULL, vector BLOB NOT NULL,
        UNIQUE (embedder, hash)
    );
    """,
)


def migrate(connection: sqlite3.Connection, migrations: Sequence[str] = MIGRATIONS) -> None:
    """Bring a manifest to the newest version, each step in one transaction.

    Raises:
        StoreCorrupt: a newer Lectern wrote it.
    """
    version = _version(connection)
    if version > len(migrations):
        raise StoreCorrupt(
            f"The manifest has schema version {version}, this Lectern knows {len(migrations)}.",
            hint="Upgrade Lectern, or index into another home.",
        )
    for number in range(version, len(migrations)):
        connection.execute("BEGIN IMMEDIATE")
        try:
            if _version(connection) == number:  # nobody else was first
                for statement in filter(str.strip, migrations[number].split(";")):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number + 1}")
            connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error, OperatorError):
                connection.execute("ROLLBACK")
            raise


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
