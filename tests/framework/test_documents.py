from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from framework.documents import Chunk, Document, Section, content_hash, point_id

CHUNK = Chunk("a.md", "Same words.", 0, 11, 0)


@given(st.lists(st.text(), min_size=1), st.lists(st.text(), min_size=1))
def test_content_hashes_differ_when_any_part_differs(left: list[str], right: list[str]) -> None:
    assert (content_hash(*left) == content_hash(*right)) == (left == right)


def test_equal_paragraphs_stay_separate_points() -> None:
    ids = {
        point_id("t", "c", CHUNK),
        point_id("t", "c", replace(CHUNK, document_id="b.md")),
        point_id("t", "c", replace(CHUNK, occurrence=1)),
        point_id("t", "d", CHUNK),
        point_id("u", "c", CHUNK),
    }
    assert len(ids) == 5


def test_a_chunk_that_only_moved_keeps_its_point() -> None:
    assert point_id("t", "c", CHUNK) == point_id("t", "c", replace(CHUNK, start=5, end=16, ordinal=3, page=2))


def test_a_new_heading_makes_a_new_point_since_it_is_embedded() -> None:
    assert point_id("t", "c", CHUNK) != point_id("t", "c", replace(CHUNK, context="Guide"))


def test_a_version_changes_with_everything_that_can_be_seen() -> None:
    document = Document("a", "text", metadata={"year": 1})
    others = [
        replace(document, text="Text"),
        replace(document, title="t"),
        replace(document, source="s"),
        replace(document, metadata={"year": "1"}),
        replace(document, sections=(Section(("h",), 0, 4),)),
        replace(document, page_starts=(0,)),
    ]
    assert len({document.version, *(other.version for other in others)}) == 7
    assert document.version == replace(document, id="b").version


def test_pages_are_counted_from_one() -> None:
    document = Document("a", "x" * 30, page_starts=(0, 10, 20))
    assert [document.page_at(p) for p in (0, 9, 10, 29)] == [1, 1, 2, 3]
    assert Document("a", "x").page_at(0) is None
