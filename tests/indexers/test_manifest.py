from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from framework.documents import Chunk, Document, Section
from framework.errors import NotFound, OperatorError, StoreCorrupt
from framework.retrieval.memory import MemoryStore
from framework.retrieval.store import Corpus, Space
from framework.testing.fakes import HashEmbedder
from indexers import schema
from indexers.library import Library
from indexers.manifest import Manifest
from indexers.rows import Collection, FileFacts, Indexed

SPACE = Space("e", 4)


def add(manifest: Manifest, collection: Collection, id: str, text: str, ids: list[str]) -> Document:
    """Make a document live whose lines are its chunks."""
    start, chunks = 0, []
    for ordinal, line in enumerate(text.split("\n")):
        chunks.append(Chunk(id, line, start, start + len(line), ordinal, heading_path=("A", "B"), page=1))
        start += len(line) + 1
    document = Document(id, text, "T", id, "text/plain", {"n": 1, "b": True}, (Section(("A",), 0, 1),), (0,))
    manifest.publish(collection, [Indexed(document, FileFacts(), chunks, ids)])
    return document


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return Manifest(tmp_path / "manifest.sqlite")


@pytest.fixture
def collection(manifest: Manifest) -> Collection:
    return manifest.create_collection("t", "docs", SPACE, "name", "chunker")


def test_what_is_published_is_read_back_whole(manifest: Manifest, collection: Collection) -> None:
    assert isinstance(manifest, Corpus)
    document = add(manifest, collection, "d", "one\ntwo 漢🙂", ["p1", "p2"])
    assert manifest.document("t", "docs", "d") == document == manifest.document("t", "docs", "d", document.version)
    hits = manifest.hits("t", "docs", ["p2", "nothing", "p1"])
    assert hits.keys() == {"p1", "p2"}
    assert hits["p2"].chunk == Chunk("d", "two 漢🙂", 4, 10, 1, heading_path=("A", "B"), page=1)
    assert (hits["p2"].version, hits["p2"].metadata, hits["p2"].score) == (document.version, {"n": 1, "b": True}, 0.0)


def test_only_live_versions_are_hit_and_what_nothing_uses_is_pending(
    manifest: Manifest, collection: Collection
) -> None:
    old = add(manifest, collection, "d", "one\ntwo", ["p1", "p2"])
    add(manifest, collection, "d", "two\nthree", ["p2", "p3"])
    assert manifest.hits("t", "docs", ["p1", "p2", "p3"]).keys() == {"p2", "p3"}
    assert manifest.hits("t", "docs", ["p2"])["p2"].chunk.start == 0
    assert manifest.pending(collection) == ["p1"]
    with pytest.raises(NotFound, match="no longer stored"):
        manifest.document("t", "docs", "d", old.version)


def test_hits_are_of_one_tenant_and_collection(manifest: Manifest, collection: Collection) -> None:
    add(manifest, collection, "d", "one", ["p1"])
    manifest.create_collection("t", "other", SPACE, "name", "chunker")
    manifest.create_collection("u", "docs", SPACE, "name", "chunker")
    for tenant, name in (("t", "other"), ("u", "docs"), ("x", "docs"), ("t", "' OR 1=1 --")):
        assert manifest.hits(tenant, name, ["p1"]) == {}
        with pytest.raises(NotFound):
            manifest.document(tenant, name, "d")


def test_readers_never_see_a_mix_of_versions(manifest: Manifest, collection: Collection) -> None:
    texts = [("a\nb\nc", ["p1", "p2", "p3"]), ("b\nd\na", ["p2", "p4", "p1"])]
    done = threading.Event()
    wrong: list[object] = []

    def read() -> None:
        while not done.is_set():
            hits = manifest.hits("t", "docs", ["p1", "p2", "p3", "p4"])
            if len({hit.version for hit in hits.values()}) > 1 or len(hits) not in (0, 3):
                wrong.append(hits)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for turn in range(60):
        text, ids = texts[turn % 2]
        add(manifest, collection, "d", text, ids)
    done.set()
    for reader in readers:
        reader.join()
    assert not wrong


def test_a_failed_transaction_leaves_the_old_version(manifest: Manifest, collection: Collection) -> None:
    add(manifest, collection, "d", "one", ["p1"])
    bad = Document("e", "x", metadata={"set": {1}})  # type: ignore[dict-item]  # can't be written
    chunk = Chunk("e", "x", 0, 1, 0)
    with pytest.raises(TypeError):
        manifest.publish(collection, [Indexed(bad, FileFacts(), [chunk], ["p2"])], removed=["d"])
    assert manifest.document("t", "docs", "d").text == "one"


def test_the_cache_keeps_the_newest(manifest: Manifest) -> None:
    for number in range(6):
        manifest.cache("e", {f"h{number}": np.full(4, number, np.float32)}, limit=4)
    found = manifest.cached("e", [f"h{number}" for number in range(6)])
    assert sorted(found) == ["h2", "h3", "h4", "h5"]
    assert found["h5"].tolist() == [5, 5, 5, 5]
    assert manifest.cached("other", ["h5"]) == {}


def test_a_manifest_of_the_first_version_is_migrated(tmp_path: Path) -> None:
    path = tmp_path / "manifest.sqlite"
    with sqlite3.connect(path, isolation_level=None) as old:
        schema.migrate(old, schema.MIGRATIONS[:1])
        assert old.execute("PRAGMA user_version").fetchone() == (1,)
        space = json.dumps({"embedder": "e", "dimensions": 4})
        old.execute("INSERT INTO collections VALUES (7, 't', 'docs', ?, 'name', 'chunker', 0.0)", (space,))
    manifest = Manifest(path)
    assert manifest.collection("t", "docs") == Collection(7, "t", "docs", SPACE, "name", "chunker")
    manifest.cache("e", {"h": np.ones(4, np.float32)}, limit=9)
    assert list(manifest.cached("e", ["h"])) == ["h"]
    again = sqlite3.connect(path)
    assert again.execute("PRAGMA user_version").fetchone() == (len(schema.MIGRATIONS),)


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "m.sqlite", isolation_level=None)
    with pytest.raises(sqlite3.Error):
        schema.migrate(connection, (*schema.MIGRATIONS, "CREATE TABLE extra (a); CREATE TABEL broken"))
    assert connection.execute("PRAGMA user_version").fetchone() == (len(schema.MIGRATIONS),)
    assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'extra'").fetchone() == (0,)


def test_a_newer_manifest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "manifest.sqlite"
    with sqlite3.connect(path) as newer:
        newer.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreCorrupt, match="schema version 99, this Lectern knows"):
        Manifest(path)


def test_a_file_that_is_no_manifest_is_told(tmp_path: Path) -> None:
    path = tmp_path / "manifest.sqlite"
    path.write_text("This is a text file, long enough to be taken for a header." * 20)
    with pytest.raises(StoreCorrupt, match=r"manifest\.sqlite can't be opened"):
        Manifest(path)


@pytest.fixture
def damaged(tmp_path: Path, docs: Path) -> Path:
    """A home whose manifest has garbage in all pages but the first two."""
    for number in range(200):
        (docs / f"{number}.txt").write_text(f"Note {number}. " + f"{number * 7919} " * 500)
    home = tmp_path / "home"
    with Library(home, MemoryStore(), HashEmbedder()) as library:
        library.index([docs], "docs")
    path = home / "manifest.sqlite"
    data = path.read_bytes()
    assert len(data) > 40 * 4096
    path.write_bytes(data[:8192] + b"\xa5" * (len(data) - 8192))
    return home


def test_a_damaged_manifest_is_told_by_reads_and_writes_alike(damaged: Path, docs: Path) -> None:
    with Library(damaged, MemoryStore(), HashEmbedder()) as library:
        calls: list[Callable[[], object]] = [
            library.collections,
            lambda: library.index([docs], "docs"),
            lambda: library.verify("docs"),
            lambda: library.retriever("docs"),
            lambda: library.manifest.hits("default", "docs", ["x"]),
            lambda: library.manifest.create_collection("default", "new", SPACE, "name", "chunker"),
        ]
        for call in calls:
            with pytest.raises(StoreCorrupt, match=r"manifest\.sqlite can't be .*Restore it from a backup, or move"):
                call()


def test_damage_that_shows_only_at_a_later_row_is_told(manifest: Manifest, collection: Collection) -> None:
    manifest.intend(collection, [f"point {number:06}" for number in range(20_000)])
    manifest.close()
    data = bytearray(manifest.path.read_bytes())
    at = data.rindex(b"point 015000")
    data[at // 4096 * 4096 : (at // 4096 + 1) * 4096] = b"\xff" * 4096
    manifest.path.write_bytes(data)
    with pytest.raises(StoreCorrupt, match="can't be read: database disk image is malformed"):
        Manifest(manifest.path).pending(collection)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE documents SET text = x'00112233'",
        "UPDATE documents SET metadata = '{'",
        "UPDATE documents SET metadata = CAST(x'7bff' AS TEXT)",
        "DROP TABLE documents",
    ],
)
def test_a_row_that_makes_no_sense_is_told(manifest: Manifest, collection: Collection, damage: str) -> None:
    add(manifest, collection, "d", "one", ["p1"])
    manifest._connection.execute("PRAGMA foreign_keys = OFF")
    manifest._connection.execute(damage)
    with pytest.raises(StoreCorrupt, match="Restore it from a backup"):
        manifest.document("t", "docs", "d")


def test_a_locked_manifest_is_not_called_damaged(manifest: Manifest, collection: Collection) -> None:
    other = Manifest(manifest.path)
    other._connection.execute("PRAGMA busy_timeout = 1")
    manifest._connection.execute("BEGIN IMMEDIATE")
    with pytest.raises(OperatorError, match="can't be written: database is locked") as caught:
        other.remove_collection("t", "docs")
    assert not isinstance(caught.value, StoreCorrupt)
    manifest._connection.execute("ROLLBACK")
    other.remove_collection("t", "docs")


def test_a_full_disk_is_loud_and_leaves_the_old_state(tmp_path: Path, docs: Path) -> None:
    with Library(tmp_path / "home", MemoryStore(), HashEmbedder()) as library:
        library.index([docs], "docs")
        connection = library.manifest._connection
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        (docs / "notes.txt").write_text("\n\n".join(f"New paragraph {i} {'word ' * 150}" for i in range(200)))
        with pytest.raises(OperatorError, match="can't be written: database or disk is full"):
            library.index([docs], "docs")
        connection.execute(f"PRAGMA max_page_count = {pages * 100}")
        assert "Opening hours" in library.corpus.document("default", "docs", "docs/notes.txt").text
        assert library.index([docs], "docs").changed == ("docs/notes.txt",)
        assert library.verify("docs").ok
