"""What verify finds, and that repair mends it."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
import pytest

from framework.bridge import run_sync
from framework.errors import StoreCorrupt
from framework.retrieval.store import Point, SparseVector
from indexers.library import Library


@pytest.fixture
def indexed(library: Library, docs: Path) -> Library:
    library.index([docs], "docs")
    return library


def points(library: Library) -> list[str]:
    return [id for id, _ in library.store.payloads("default", "docs")]


def test_an_untouched_index_is_right(indexed: Library) -> None:
    report = indexed.verify("docs")
    assert report.ok
    assert report.points == 5


def test_missing_points_are_found_and_written_again(indexed: Library) -> None:
    lost = sorted(points(indexed))[:2]
    vectors = indexed.store.vectors("default", "docs", lost)
    indexed.store.delete("default", "docs", lost)
    report = indexed.verify("docs")
    assert (report.missing, report.ok) == (tuple(lost), False)
    assert indexed.verify("docs", repair=True).ok
    assert indexed.verify("docs").missing == ()
    again = indexed.store.vectors("default", "docs", lost)
    assert all(np.array_equal(vectors[id], again[id]) for id in lost)


def test_points_that_nothing_uses_are_found_and_removed(indexed: Library) -> None:
    stray = str(uuid.uuid4())
    indexed.store.upsert("default", "docs", [Point(stray, np.ones(32, np.float32), SparseVector((1,), (1.0,)))])
    assert indexed.verify("docs").extra == (stray,)
    assert indexed.verify("docs", repair=True).repaired
    assert stray not in points(indexed)


def test_a_stale_payload_is_found_and_replaced(indexed: Library) -> None:
    id = points(indexed)[0]
    indexed.store.set_payload("default", "docs", {id: {"document_id": "elsewhere"}})
    assert indexed.verify("docs").stale == (id,)
    assert indexed.verify("docs", repair=True).ok
    assert indexed.verify("docs").stale == ()


def test_chunks_that_contradict_their_text_are_found_and_cut_again(indexed: Library) -> None:
    connection = indexed.manifest._connection
    connection.execute("UPDATE chunks SET text = 'forged' WHERE ordinal = 0 AND text LIKE 'Opening%'")
    assert indexed.verify("docs").damaged == ("docs/notes.txt",)
    assert indexed.verify("docs", repair=True).ok
    assert indexed.verify("docs").damaged == ()
    assert indexed.verify("docs").ok


def test_a_store_that_is_gone_is_made_again(indexed: Library) -> None:
    indexed.store.drop("default", "docs")
    report = indexed.verify("docs")
    assert (report.points, len(report.missing)) == (0, 5)
    assert indexed.verify("docs", repair=True).ok
    assert indexed.verify("docs").points == 5


def test_a_collection_that_the_store_lost_names_its_repair(indexed: Library) -> None:
    indexed.store.drop("default", "docs")
    told = r"store has lost the collection 'docs'.*lectern index verify -c docs --repair"
    with pytest.raises(StoreCorrupt, match=told):
        indexed.retriever("docs")
    with pytest.raises(StoreCorrupt, match=told):
        indexed.remove_document("docs", "docs/notes.txt")
    assert indexed.verify("docs", repair=True).ok
    assert run_sync(indexed.retriever("docs").search("refund", mode="lexical")).hits
