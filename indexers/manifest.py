"""The truth about what is indexed: collections, documents with their text, chunks with their spans. One SQLite file.

One invariant holds between the manifest and a collection's store after any crash: the store has a point for each chunk
of a live document, and no other point, save for the ids in `pending`. A run settles `pending` before anything else.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from framework.config import make_home
from framework.documents import Chunk, Document, Hit
from framework.errors import NotFound, OperatorError, StoreCorrupt
from framework.models.base import Vectors
from framework.retrieval.store import Space
from indexers import rows
from indexers.rows import CHUNK, COLLECTION, DOCUMENT, HITS, OWNER, RESTORE, Collection, FileFacts, Indexed, Known
from indexers.schema import migrate

# What SQLite says of a file that holds something else than was written. "error" is said of tables that are not there.
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_FORMAT)
DOING = {"PRAGMA": "opened", "SELECT": "read"}


@contextmanager
def _reporting(path: Path, doing: str) -> Iterator[None]:
    """What SQLite raises, as an error for the operator.

    Raises:
        StoreCorrupt: the file is damaged.
        OperatorError: it is locked, the disk is full or fails, or the file may not be read or written.
    """
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        raise  # a defect of ours, or a library closed meanwhile
    except sqlite3.DatabaseError as error:
        # Python gives no code where text is not in UTF-8.
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        message = f"The manifest {path} can't be {doing}: {error}."
        if code in DAMAGED:
            raise StoreCorrupt(message, hint=RESTORE) from error
        raise OperatorError(message) from error


class _Cursor(sqlite3.Cursor):
    """Every statement on the manifest, and every row that is read, goes through here."""

    connection: _Connection
    doing = "read"

    def execute(self, sql: str, parameters: Any = ()) -> _Cursor:
        self.doing = DOING.get(sql.split(maxsplit=1)[0], "written")
        with _reporting(self.connection.path, self.doing):
            super().execute(sql, parameters)
        return self

    def executemany(self, sql: str, parameters: Iterable[Any]) -> _Cursor:
        self.doing = "written"
        with _reporting(self.connection.path, self.doing):
            super().executemany(sql, parameters)
        return self

    def fetchone(self) -> Any:
        with _reporting(self.connection.path, self.doing):
            return super().fetchone()

    def fetchall(self) -> list[Any]:
        with _reporting(self.connection.path, self.doing):
            return super().fetchall()

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except sqlite3.Error:
            with _reporting(self.connection.path, self.doing):
                raise


class _Connection(sqlite3.Connection):
    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__(path, **options)
        self.path = path

    def execute(self, sql: str, parameters: Any = ()) -> _Cursor:
        return self.cursor(_Cursor).execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any]) -> _Cursor:
        return self.cursor(_Cursor).executemany(sql, parameters)


class Manifest:
    """One SQLite file. Reads are safe from any thread, each in one transaction; writes go one at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        self._open: list[sqlite3.Connection] = []
        self._lock = threading.RLock()
        self._closed = False
        make_home(path.parent)
        with self._lock:
            migrate(self._connection)

    @property
    def _connection(self) -> sqlite3.Connection:
        """This thread's connection."""
        self.check_open()
        found: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if found is None:
            with _reporting(self.path, "opened"):
                found = _Connection(self.path, timeout=30.0, isolation_level=None, check_same_thread=False)
            found.execute("PRAGMA journal_mode = WAL")
            found.execute("PRAGMA synchronous = FULL")
            found.execute("PRAGMA foreign_keys = ON")
            self._local.connection = found
            with self._lock:
                self._open.append(found)
        return found

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """One transaction; all of it or nothing."""
        with self._lock:
            connection = self._connection
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def check_open(self) -> None:
        if self._closed:
            raise OperatorError("The library is closed.", hint="Open it again with Library.open().")

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for connection in self._open:
                connection.close()
            self._open.clear()

    # Corpus: what searches and citations are checked against

    def hits(self, tenant: str, collection: str, ids: Sequence[str]) -> dict[str, Hit]:
        """The chunks of live versions among these point ids; see `framework.retrieval.store.Corpus`."""
        found = self._connection.execute(HITS, (json.dumps(ids), tenant, collection))
        return {row[0]: rows.hit(row) for row in found}

    def document(self, tenant: str, collection: str, document_id: str, version: str | None = None) -> Document:
        """The stored document; None asks for the live version.

        Raises:
            NotFound: no such document, or that version is no longer stored.
        """
        row = self._connection.execute(
            f"SELECT {DOCUMENT}, version, live FROM documents WHERE document_id = ? AND collection = "
            "(SELECT id FROM collections WHERE tenant = ? AND name = ?)",
            (document_id, tenant, collection),
        ).fetchone()
        if row is None or (version is None and not row[-1]):
            raise NotFound(f"There is no document {document_id!r} in the collection {collection!r}.")
        if version is not None and version != row[-2]:
            raise NotFound(
                f"Version {version} of {document_id!r} is no longer stored.", hint="Ask for the live version."
            )
        return rows.document(row)

    # Collections

    def collections(self, tenant: str) -> list[Collection]:
        found = self._connection.execute(
            f"SELECT {COLLECTION} FROM collections WHERE tenant = ? ORDER BY name", (tenant,)
        )
        return [rows.collection(row) for row in found]

    def collection(self, tenant: str, name: str) -> Collection:
        """Raises NotFound where the tenant has no collection of that name."""
        row = self._connection.execute(
            f"SELECT {COLLECTION} FROM collections WHERE tenant = ? AND name = ?", (tenant, name)
        ).fetchone()
        if row is None:
            names = ", ".join(c.name for c in self.collections(tenant)) or "none"
            raise NotFound(
                f"There is no collection {name!r}.", hint=f"Known: {names}. Make one: lectern index PATH -c {name}"
            )
        return rows.collection(row)

    def create_collection(self, tenant: str, name: str, space: Space, embedder_name: str, chunker: str) -> Collection:
        """Make the collection, or give an existing one a new space: none of its documents is live in that one."""
        values = (tenant, name, json.dumps(asdict(space)), embedder_name, chunker, time.time())
        with self._write() as connection:
            connection.execute(
                "INSERT INTO collections (tenant, name, space, embedder_name, chunker, created) "
                "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (tenant, name) DO UPDATE SET "
                "space = excluded.space, embedder_name = excluded.embedder_name, chunker = excluded.chunker",
                values,
            )
            made = rows.collection(
                connection.execute(
                    f"SELECT {COLLECTION} FROM collections WHERE tenant = ? AND name = ?", (tenant, name)
                ).fetchone()
            )
            connection.execute(  # a store that is not emptied before a crash loses them then
                "INSERT OR IGNORE INTO pending SELECT collection, point_id FROM chunks JOIN documents AS d "
                "ON d.id = document WHERE collection = ?",
                (made.id,),
            )
            connection.execute(
                "DELETE FROM chunks WHERE document IN (SELECT id FROM documents WHERE collection = ?)", (made.id,)
            )
            connection.execute("UPDATE documents SET live = 0 WHERE collection = ?", (made.id,))
        return made

    def remove_collection(self, tenant: str, name: str) -> None:
        with self._write() as connection:
            connection.execute("DELETE FROM collections WHERE tenant = ? AND name = ?", (tenant, name))

    # Documents

    def known(self, collection: Collection) -> dict[str, Known]:
        """Every document and every quarantined file, by document id."""
        found = {
            row[0]: Known(row[0], FileFacts(*row[1:6]), row[6], bool(row[7]))
            for row in self._connection.execute(
                "SELECT document_id, root, path, size, mtime_ns, file_hash, version, live FROM documents "
                "WHERE collection = ? ORDER BY document_id",
                (collection.id,),
            )
        }
        for id, root, path, size, mtime_ns, reason in self._connection.execute(
            "SELECT document_id, root, path, size, mtime_ns, reason FROM quarantine WHERE collection = ? "
            "ORDER BY document_id",
            (collection.id,),
        ):
            old = found.get(id, Known(id, FileFacts()))
            found[id] = replace(old, file=FileFacts(root, path, size, mtime_ns), reason=reason)
        return found

    def documents(
        self, collection: Collection, ids: Iterable[str] | None = None, *, live: bool = False
    ) -> Iterator[Document]:
        """Stored documents in order of id: all of them, or those with the given ids, or only the live ones."""
        if ids is None:
            found = self._connection.execute(
                "SELECT document_id FROM documents WHERE collection = ? AND live >= ? ORDER BY document_id",
                (collection.id, int(live)),
            )
            ids = [row[0] for row in found]
        for id in ids:
            row = self._connection.execute(
                f"SELECT {DOCUMENT} FROM documents WHERE collection = ? AND document_id = ?", (collection.id, id)
            ).fetchone()
            if row is not None:
                yield rows.document(row)

    def chunks(self, collection: Collection, document_id: str) -> list[tuple[str, Chunk]]:
        """Point ids and chunks of a document, in order."""
        found = self._connection.execute(
            f"SELECT {CHUNK} FROM chunks AS c JOIN documents AS d ON d.id = c.document "
            "WHERE d.collection = ? AND d.document_id = ? ORDER BY c.ordinal",
            (collection.id, document_id),
        )
        return [(row[0], rows.chunk(row)) for row in found]

    def live_ids(self, collection: Collection) -> set[str]:
        """Point ids of all live chunks."""
        found = self._connection.execute(f"SELECT {OWNER} WHERE d.collection = ? AND d.live", (collection.id,))
        return {row[0] for row in found}

    def owners(self, collection: Collection, ids: Sequence[str]) -> dict[str, str]:
        """Which of these point ids are live, and the document that each belongs to."""
        found = self._connection.execute(
            f"SELECT {OWNER} WHERE d.collection = ? AND d.live AND point_id IN (SELECT value FROM json_each(?))",
            (collection.id, json.dumps(ids)),
        )
        return dict(found.fetchall())

    def publish(self, collection: Collection, indexed: Sequence[Indexed], removed: Sequence[str] = ()) -> list[str]:
        """Make these versions live and remove those documents, in one transaction, after the store was flushed.

        Returns:
            Ids of points that no live version uses any more; they are pending until `settled`.
        """
        with self._write() as connection:
            old: set[str] = set()
            for id in (*(item.document.id for item in indexed), *removed):
                old.update(
                    row[0]
                    for row in connection.execute(
                        "SELECT point_id FROM chunks JOIN documents AS d ON d.id = document "
                        "WHERE d.collection = ? AND d.document_id = ?",
                        (collection.id, id),
                    )
                )
                key = (collection.id, id)
                connection.execute("DELETE FROM documents WHERE collection = ? AND document_id = ?", key)
                connection.execute("DELETE FROM quarantine WHERE collection = ? AND document_id = ?", key)
            for item in indexed:
                rows.insert(connection, collection, item)
            live = {id for item in indexed for id in item.ids}
            rows.delete_pending(connection, collection, live)
            orphans = sorted(old - live)
            rows.add_pending(connection, collection, orphans)
        return orphans

    def update_files(self, collection: Collection, files: Mapping[str, FileFacts]) -> None:
        """Note new places and times of files whose content is what is indexed already."""
        with self._write() as connection:
            connection.executemany(
                "UPDATE documents SET root = ?, path = ?, size = ?, mtime_ns = ?, file_hash = ? "
                "WHERE collection = ? AND document_id = ?",
                [(f.root, f.path, f.size, f.mtime_ns, f.hash, collection.id, id) for id, f in files.items()],
            )
            connection.executemany(
                "DELETE FROM quarantine WHERE collection = ? AND document_id = ?", [(collection.id, id) for id in files]
            )

    def quarantine(self, collection: Collection, document_id: str, file: FileFacts, reason: str) -> None:
        with self._write() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO quarantine VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (collection.id, document_id, file.root, file.path, file.size, file.mtime_ns, reason, time.time()),
            )

    # Points between the store and the manifest

    def intend(self, collection: Collection, ids: Iterable[str]) -> None:
        """Note points that are about to be written, so that a crash leaves none behind."""
        with self._write() as connection:
            rows.add_pending(connection, collection, ids)

    def pending(self, collection: Collection) -> list[str]:
        found = self._connection.execute("SELECT point_id FROM pending WHERE collection = ?", (collection.id,))
        return [row[0] for row in found]

    def settled(self, collection: Collection, ids: Iterable[str]) -> None:
        with self._write() as connection:
            rows.delete_pending(connection, collection, ids)

    # The embedding cache

    def cached(self, embedder: str, hashes: Sequence[str]) -> dict[str, Vectors]:
        """Vectors by content hash, those that there are."""
        found = self._connection.execute(
            "SELECT hash, vector FROM vectors WHERE embedder = ? AND hash IN (SELECT value FROM json_each(?))",
            (embedder, json.dumps(hashes)),
        )
        return {row[0]: np.frombuffer(row[1], dtype=np.float32) for row in found}

    def cache(self, embedder: str, vectors: Mapping[str, Vectors], limit: int) -> None:
        """Keep vectors; beyond `limit` in all, the oldest go."""
        with self._write() as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO vectors (embedder, hash, vector) VALUES (?, ?, ?)",
                [(embedder, hash, np.asarray(v, np.float32).tobytes()) for hash, v in vectors.items()],
            )
            newest = connection.execute("SELECT max(id) FROM vectors").fetchone()[0] or 0
            connection.execute("DELETE FROM vectors WHERE id <= ?", (newest - limit,))

    def count(self, collection: Collection) -> dict[str, int]:
        """Numbers of live documents, empty ones among them, chunks and characters."""
        row = self._connection.execute(
            "SELECT count(*), coalesce(sum(characters), 0), coalesce(sum(live = 0), 0), coalesce(sum(NOT EXISTS "
            "(SELECT 1 FROM chunks WHERE document = documents.id)), 0) FROM documents WHERE collection = ?",
            (collection.id,),
        ).fetchone()
        chunks = self._connection.execute(
            "SELECT count(*) FROM chunks JOIN documents AS d ON d.id = document WHERE d.collection = ?",
            (collection.id,),
        ).fetchone()[0]
        return {
            "documents": row[0] - row[2],
            "characters": row[1],
            "waiting": row[2],
            "empty": row[3],
            "chunks": chunks,
        }
