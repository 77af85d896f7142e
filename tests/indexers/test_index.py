"""An index is the reconciled state of its sources."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from framework.bridge import run_sync
from framework.documents import Document, point_id
from framework.errors import CallerError, Conflict, NotFound, OperatorError
from framework.models.base import Vectors
from framework.retrieval.filters import Eq
from framework.retrieval.memory import MemoryStore
from framework.testing.fakes import HashEmbedder
from indexers.config import IndexConfig
from indexers.library import Library
from indexers.report import Progress


class Counting(HashEmbedder):
    """Remembers what it embedded, and in how many calls."""

    def __init__(self, dimensions: int = 32) -> None:
        super().__init__(dimensions)
        self.texts: list[str] = []
        self.calls = 0

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        self.texts += texts
        self.calls += 1
        return super().embed_documents(texts)


def ids(library: Library, collection: str = "docs") -> set[str]:
    return {id for id, _ in library.store.payloads("default", collection)}


def found(library: Library, query: str, collection: str = "docs") -> list[str]:
    """Texts of the hits."""
    result = run_sync(library.retriever(collection).search(query, k=3))
    return [hit.chunk.text for hit in result.hits]


def test_the_first_run_makes_every_document_searchable(library: Library, docs: Path) -> None:
    report = library.index([docs], "docs")
    assert report.added == ("docs/guide/refunds.md", "docs/intro.md", "docs/notes.txt")
    assert report.ok
    assert report.chunks == report.embedded == len(ids(library)) == 5
    hit = run_sync(library.retriever("docs").search("refund deadlines", filter=Eq("team", "billing"))).hits[0]
    assert hit.chunk.document_id == "docs/guide/refunds.md"
    assert (hit.title, hit.chunk.heading_path, hit.metadata["team"]) == ("Refunds", ("Deadlines",), "billing")
    document = library.corpus.document("default", "docs", hit.chunk.document_id, hit.version)
    assert document.text[hit.chunk.start : hit.chunk.end] == hit.chunk.text == "Deadlines\n\nA refund takes ten days."
    assert library.verify("docs").ok


def test_a_second_run_reads_and_embeds_nothing(library: Library, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library.index([docs], "docs")
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a file was read"))
    report = library.index([docs], "docs")
    assert (report.unchanged, report.chunks, report.added, report.changed, report.deleted) == (3, 0, (), (), ())


def test_an_edited_file_embeds_its_changed_chunks_only(tmp_path: Path, docs: Path) -> None:
    embedder = Counting()
    with Library(tmp_path / "home", MemoryStore(), embedder) as library:
        library.index([docs], "docs")
        before = ids(library)
        embedder.texts.clear()
        path = docs / "guide" / "refunds.md"
        path.write_text(path.read_text().replace("At most once.", "At most twice a year."))
        report = library.index([docs], "docs")
        assert report.changed == ("docs/guide/refunds.md",)
        assert (report.chunks, report.embedded, report.reused) == (2, 1, 1)
        assert embedder.texts == ["Refunds\nLimits\n\nAt most twice a year."]
        assert len(before & ids(library)) == len(before) - 1
        assert found(library, "at most once a year")[0] == "Limits\n\nAt most twice a year."
        assert library.verify("docs").ok


def test_a_chunk_that_only_moved_gets_its_new_span(tmp_path: Path, docs: Path) -> None:
    embedder = Counting()
    with Library(tmp_path / "home", MemoryStore(), embedder) as library:
        library.index([docs], "docs")
        before = ids(library)
        embedder.texts.clear()
        path = docs / "guide" / "refunds.md"
        path.write_text(path.read_text().replace("## Deadlines", "## New\n\nFirst of all.\n\n## Deadlines"))
        library.index([docs], "docs")
        assert embedder.texts == ["Refunds\nNew\n\nFirst of all."]
        assert before < ids(library)
        hit = run_sync(library.retriever("docs").search("refund takes ten days")).hits[0]
        text = library.corpus.document("default", "docs", "docs/guide/refunds.md").text
        assert text[hit.chunk.start : hit.chunk.end] == hit.chunk.text == "Deadlines\n\nA refund takes ten days."


def test_changed_metadata_reaches_the_filters_without_embedding(tmp_path: Path, docs: Path) -> None:
    embedder = Counting()
    with Library(tmp_path / "home", MemoryStore(), embedder) as library:
        library.index([docs], "docs")
        embedder.texts.clear()
        path = docs / "guide" / "refunds.md"
        path.write_text(path.read_text().replace("team: billing", "team: sales"))
        library.index([docs], "docs")
        assert embedder.texts == []
        assert len(run_sync(library.retriever("docs").search("refund", filter=Eq("team", "sales"))).hits) == 2
        assert not run_sync(library.retriever("docs").search("refund", filter=Eq("team", "billing"))).hits
        assert library.verify("docs").ok


def test_a_touched_file_is_read_again_but_changes_nothing(library: Library, docs: Path) -> None:
    library.index([docs], "docs")
    os.utime(docs / "intro.md", ns=(1, 1))
    report = library.index([docs], "docs")
    assert (report.unchanged, report.chunks) == (3, 0)


def test_a_file_whose_bytes_but_not_whose_text_changed_is_not_written_again(library: Library, docs: Path) -> None:
    library.index([docs], "docs")
    (docs / "notes.txt").write_text((docs / "notes.txt").read_text() + "\n\n")
    assert (library.index([docs], "docs").unchanged, library.index([docs], "docs").unchanged) == (3, 3)


def test_a_deleted_file_leaves(library: Library, docs: Path) -> None:
    library.index([docs], "docs")
    (docs / "notes.txt").unlink()
    assert library.index([docs], "docs").deleted == ("docs/notes.txt",)
    assert "Opening" not in str(found(library, "opening hours nine five"))
    with pytest.raises(NotFound):
        library.corpus.document("default", "docs", "docs/notes.txt")
    assert library.verify("docs").ok


def test_only_what_lies_below_the_given_paths_can_leave(library: Library, docs: Path) -> None:
    library.index([docs], "docs")
    (docs / "notes.txt").unlink()
    (docs / "guide" / "refunds.md").unlink()
    assert library.index([docs / "guide"], "docs").deleted == ("docs/guide/refunds.md",)
    assert library.status("docs").documents == 2


def test_a_moved_file_is_not_embedded_again(tmp_path: Path, docs: Path) -> None:
    embedder = Counting()
    with Library(tmp_path / "home", MemoryStore(), embedder) as library:
        library.index([docs], "docs")
        embedder.texts.clear()
        (docs / "guide" / "refunds.md").rename(docs / "money.md")
        report = library.index([docs], "docs")
        assert report.moved == (("docs/guide/refunds.md", "docs/money.md"),)
        assert embedder.texts == []
        assert library.verify("docs").ok


def test_documents_are_embedded_together(tmp_path: Path) -> None:
    embedder = Counting()
    with Library(tmp_path / "home", MemoryStore(), embedder) as library:
        library.index_documents([Document(f"d{i}", f"Text number {i}.") for i in range(200)], "docs")
        assert len(embedder.texts) == 200
        assert embedder.calls == 4


def test_a_root_that_moved_is_adopted(library: Library, docs: Path, tmp_path: Path) -> None:
    library.index([docs], "docs")
    (tmp_path / "elsewhere").mkdir()
    moved = docs.rename(tmp_path / "elsewhere" / "docs")
    (moved / "notes.txt").unlink()
    report = library.index([moved], "docs")
    assert (report.unchanged, report.deleted) == (2, ("docs/notes.txt",))
    assert library.status("docs").roots == (str(moved),)


def test_the_same_id_from_another_folder_is_a_conflict(library: Library, docs: Path, tmp_path: Path) -> None:
    library.index([docs], "docs")
    shutil.copytree(docs, tmp_path / "copy" / "docs")
    with pytest.raises(Conflict, match=r"was indexed from .*docs/guide/refunds\.md.*would replace it"):
        library.index([tmp_path / "copy" / "docs"], "docs")
    with pytest.raises(Conflict, match="would both be the document"):
        library.index([docs, tmp_path / "copy" / "docs"], "other")


def test_a_single_file_is_known_by_its_name(library: Library, docs: Path) -> None:
    assert library.index([docs / "notes.txt"], "docs").added == ("notes.txt",)
    assert library.index([docs / "notes.txt"], "docs").unchanged == 1


def test_hidden_files_are_left_out_and_other_types_are_counted(library: Library, docs: Path) -> None:
    (docs / ".git").mkdir()
    (docs / ".git" / "config.txt").write_text("hidden")
    (docs / "logo.png").write_bytes(b"\x89PNG")
    (docs / "Makefile").write_text("all:")
    report = library.index([docs], "docs")
    assert len(report.added) == 3
    assert report.skipped == {".png": 1, "no extension": 1}


def test_links_that_lead_back_end(library: Library, docs: Path) -> None:
    (docs / "guide" / "up").symlink_to(docs)
    (docs / "dangling.md").symlink_to(docs / "nowhere.md")
    report = library.index([docs], "docs")
    assert len(report.added) == 3
    assert [item.document_id for item in report.quarantined] == ["docs/dangling.md"]


def test_a_link_to_itself_is_quarantined(library: Library, docs: Path) -> None:
    (docs / "self.md").symlink_to(docs / "self.md")
    (docs / "self").symlink_to(docs / "self")
    report = library.index([docs], "docs")
    assert (len(report.added), report.skipped) == (3, {"no extension": 1})
    assert [item.document_id for item in report.quarantined] == ["docs/self.md"]


def test_names_that_are_no_text_are_quarantined_until_they_are_mended(library: Library, docs: Path) -> None:
    bad = os.fsdecode(b"caf\xe9")
    (docs / f"{bad}.md").write_text("Coffee.")
    (docs / f"photo.{bad}").write_bytes(b"")
    (docs / bad).mkdir()
    (docs / bad / "menu.md").write_text("Tea.")
    for _ in range(2):
        report = library.index([docs], "docs")
        assert [item.document_id for item in report.quarantined] == ["docs/caf\\xe9", "docs/caf\\xe9.md"]
        assert report.skipped == {".caf\\xe9": 1}
    (docs / f"{bad}.md").rename(docs / "coffee.md")
    (docs / bad).rename(docs / "cafe")
    report = library.index([docs], "docs")
    assert report.added == ("docs/cafe/menu.md", "docs/coffee.md")
    assert report.ok
    assert library.status("docs").quarantined == ()


def test_a_path_or_an_id_that_is_no_text_is_refused(library: Library, docs: Path) -> None:
    bad = docs.rename(docs.with_name(os.fsdecode(b"docs\xff")))
    with pytest.raises(CallerError, match=r"docs\\xff is not valid UTF-8"):
        library.index([bad], "docs")
    with pytest.raises(CallerError, match="lone surrogate"):
        library.index_documents([Document("a\ud800", "Text.")], "notes")


def test_a_document_without_text_is_recorded_and_told(library: Library, docs: Path) -> None:
    (docs / "empty.md").write_text("---\ntitle: Nothing\n---\n")
    (docs / "zero.txt").write_text("")
    report = library.index([docs], "docs")
    assert report.empty == ("docs/empty.md", "docs/zero.txt")
    assert report.ok
    assert library.status("docs").empty == 2
    assert library.index([docs], "docs").unchanged == 5


def test_an_unreadable_file_is_quarantined_and_the_others_go_on(library: Library, docs: Path) -> None:
    (docs / "blob.txt").write_bytes(bytes(range(256)) * 20)
    report = library.index([docs], "docs")
    assert len(report.added) == 3
    assert [(item.document_id, item.stale) for item in report.quarantined] == [("docs/blob.txt", False)]
    assert "binary" in report.quarantined[0].reason
    assert library.status("docs").quarantined == report.quarantined
    assert library.index([docs], "docs").quarantined == report.quarantined
    (docs / "blob.txt").write_text("Mended.")
    assert library.index([docs], "docs").added == ("docs/blob.txt",)
    assert library.status("docs").quarantined == ()


def test_a_file_that_became_unreadable_is_still_answered_from_and_told(library: Library, docs: Path) -> None:
    library.index([docs], "docs")
    text = (docs / "notes.txt").read_text()
    (docs / "notes.txt").write_bytes(b"\0\1\2\3" * 99)
    report = library.index([docs], "docs")
    assert [(item.document_id, item.stale) for item in report.quarantined] == [("docs/notes.txt", True)]
    assert "Opening" in found(library, "opening hours nine five")[0]
    (docs / "notes.txt").write_text(text)
    assert library.index([docs], "docs").ok
    assert library.status("docs").quarantined == ()
    (docs / "notes.txt").unlink()
    assert library.index([docs], "docs").deleted == ("docs/notes.txt",)


def test_a_file_above_the_size_limit_is_not_even_read(tmp_path: Path, docs: Path) -> None:
    with (docs / "huge.txt").open("wb") as file:
        file.truncate(1 << 30)
    with Library(tmp_path / "home", MemoryStore(), HashEmbedder()) as library:
        report = library.index([docs], "docs")
    assert report.quarantined[0].reason == "It has 1024.0 MB; 64 are allowed."


def test_a_dry_run_tells_and_does_nothing(library: Library, docs: Path) -> None:
    assert library.index([docs], "docs", dry_run=True).added == (
        "docs/guide/refunds.md",
        "docs/intro.md",
        "docs/notes.txt",
    )
    assert library.collections() == []
    library.index([docs], "docs")
    (docs / "notes.txt").unlink()
    (docs / "intro.md").write_text("Other.")
    report = library.index([docs], "docs", dry_run=True)
    assert (report.changed, report.deleted, report.unchanged) == (("docs/intro.md",), ("docs/notes.txt",), 1)
    assert library.status("docs").documents == 3


def test_progress_runs_from_nothing_to_everything(library: Library, docs: Path) -> None:
    steps: list[Progress] = []
    library.index([docs], "docs", progress=steps.append)
    assert [step.share for step in steps] == sorted(step.share for step in steps)
    assert steps[-1].share == pytest.approx(1.0)
    assert (steps[-1].documents, steps[-1].documents_total, steps[-1].chunks) == (3, 3, 5)


@pytest.mark.parametrize("change", ["embedder", "chunker", "language"])
def test_another_embedder_or_chunker_is_refused_until_a_rebuild(tmp_path: Path, docs: Path, change: str) -> None:
    with Library(tmp_path / "home", store := MemoryStore(), HashEmbedder(32)) as library:
        library.index([docs], "docs")
        library.index_documents([Document("note", "A note about refunds.")], "docs")
        embedder = HashEmbedder(48 if change == "embedder" else 32)
        config = IndexConfig(
            chunk_tokens=100 if change == "chunker" else 200, language="de" if change == "language" else "en"
        )
        other = Library(tmp_path / "home", store, embedder, config=config)
        for dry_run in (True, False):
            with pytest.raises(Conflict, match=r"lectern index PATH -c docs --rebuild"):
                other.index([docs], "docs", dry_run=dry_run)
        report = other.index([docs], "docs", rebuild=True)
        assert set(report.changed) == {"docs/guide/refunds.md", "docs/intro.md", "docs/notes.txt", "note"}
        assert store.space("default", "docs").dimensions == embedder.info.dimensions
        assert other.verify("docs").ok
        assert any("note about" in text for text in found(other, "a note about refunds"))
        assert other.index([docs], "docs").unchanged == 3


def test_a_store_that_was_lost_is_filled_again(tmp_path: Path, docs: Path) -> None:
    with Library(tmp_path / "home", MemoryStore(), HashEmbedder()) as library:
        library.index([docs], "docs")
        library.index_documents([Document("note", "A note.")], "docs")
        before = ids(library)
    embedder = Counting()
    with Library(tmp_path / "home", MemoryStore(), embedder) as library:
        assert not library.verify("docs").ok
        library.index([docs], "docs")
        assert ids(library) == before
        assert embedder.texts == []
        assert library.verify("docs").ok


def test_python_documents_are_added_replaced_and_removed(library: Library) -> None:
    assert library.index_documents([Document("a", "One."), Document("b", "Two.")], "notes").added == ("a", "b")
    report = library.index_documents([Document("a", "Three.")], "notes")
    assert (report.changed, library.status("notes").documents) == (("a",), 2)
    assert library.index_documents([Document("a", "Three.")], "notes").unchanged == 1
    library.remove_document("notes", "a")
    assert [item.document_id for item in library.documents("notes")] == ["b"]
    with pytest.raises(NotFound, match="There is no document 'a'"):
        library.remove_document("notes", "a")
    assert library.verify("notes").ok


def test_a_python_document_and_a_file_never_share_an_id(library: Library, docs: Path) -> None:
    library.index([docs], "docs")
    with pytest.raises(Conflict, match="is the file"):
        library.index_documents([Document("docs/intro.md", "Mine.")], "docs")
    library.index_documents([Document("docs/new.md", "Mine.")], "docs")
    (docs / "new.md").write_text("Theirs.")
    with pytest.raises(Conflict, match="a Python call"):
        library.index([docs], "docs")


def test_a_document_that_can_not_be_stored_is_quarantined(library: Library) -> None:
    bad = [
        Document("surrogate", "half \ud800 a character"),
        Document("nan", "Text.", metadata={"weight": float("nan")}),
        Document("list", "Text.", metadata={"tags": ["a"]}),  # type: ignore[dict-item]  # what a caller may get wrong
        Document("good", "Text."),
    ]
    report = library.index_documents(bad, "notes")
    assert report.added == ("good",)
    assert [item.document_id for item in report.quarantined] == ["list", "nan", "surrogate"]


def test_two_documents_of_one_id_are_refused(library: Library) -> None:
    with pytest.raises(CallerError, match="Two documents have the id 'a'"):
        library.index_documents([Document("a", "One."), Document("a", "Two.")], "notes")


def test_equal_paragraphs_stay_separate_points(library: Library) -> None:
    text = "Same line.\n\n" + "filler " * 250 + "\n\nSame line."
    library.index_documents([Document("a", "Same."), Document("b", "Same."), Document("c", text)], "notes")
    assert library.verify("notes").points == len(ids(library, "notes"))
    assert len(found(library, "Same.", "notes")) == 3


def test_a_removed_collection_is_gone_and_its_name_is_free(library: Library, docs: Path) -> None:
    library.index([docs], "docs")
    library.remove_collection("docs")
    assert library.collections() == []
    for call in (library.status, library.verify, library.retriever, library.remove_collection):
        with pytest.raises(NotFound, match="There is no collection 'docs'"):
            call("docs")
    assert library.index([docs], "docs").embedded == 0


def test_tenants_do_not_see_each_other(library: Library, docs: Path) -> None:
    library.index([docs], "docs")
    other = library.for_tenant("other")
    assert other.collections() == []
    with pytest.raises(NotFound):
        other.corpus.document("other", "docs", "docs/intro.md")
    own = ids(library)
    other.index_documents([Document("a", "Mine.")], "docs")
    assert not library.corpus.hits("other", "docs", sorted(own))
    assert len(library.corpus.hits("default", "docs", sorted(own))) == 5


def test_one_run_at_a_time_while_searches_go_on(tmp_path: Path, docs: Path) -> None:
    started, go_on = threading.Event(), threading.Event()

    class Waiting(HashEmbedder):
        def embed_documents(self, texts: Sequence[str]) -> Vectors:
            if any("slow" in text for text in texts):
                started.set()
                assert go_on.wait(20)
            return super().embed_documents(texts)

    with Library(tmp_path / "home", MemoryStore(), Waiting()) as library:
        library.index([docs], "docs")
        run = threading.Thread(target=lambda: library.index_documents([Document("a", "slow")], "docs"))
        run.start()
        assert started.wait(20)
        with pytest.raises(Conflict, match="Another run is at work"):
            library.index([docs], "docs")
        assert found(library, "refund takes ten days")
        assert library.index_documents([Document("b", "quick")], "others").ok
        go_on.set()
        run.join()
        assert library.status("docs").documents == 4


def test_a_closed_library_says_so(tmp_path: Path) -> None:
    library = Library(tmp_path / "home", MemoryStore(), HashEmbedder())
    library.close()
    for call in (library.collections, lambda: library.index([tmp_path], "docs"), lambda: library.retriever("docs")):
        with pytest.raises(OperatorError, match="The library is closed"):
            call()


def test_a_path_that_is_not_there_is_an_error(library: Library, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="There is no file or folder"):
        library.index([tmp_path / "nothing"], "docs")
    with pytest.raises(CallerError, match="no path"):
        library.index([], "docs")


def test_point_ids_are_those_of_the_documents_chunks(library: Library, docs: Path) -> None:
    library.index([docs], "docs")
    collection = library.manifest.collection("default", "docs")
    for item in library.documents("docs"):
        for id, chunk in library.manifest.chunks(collection, item.document_id):
            assert id == point_id("default", "docs", chunk)


def test_what_lies_in_a_folder_that_can_not_be_read_stays(
    library: Library, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.index([docs], "docs")
    listed = os.scandir

    def refusing(path: Path) -> object:
        if Path(path) == docs / "guide":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", refusing)
    report = library.index([docs], "docs")
    assert [(item.document_id, item.reason) for item in report.quarantined] == [
        ("docs/guide", "The folder can't be read: Permission denied.")
    ]
    assert report.deleted == ()
    assert library.status("docs").documents == 3
    monkeypatch.undo()
    report = library.index([docs], "docs")
    assert (report.ok, report.deleted, report.unchanged) == (True, (), 3)
    assert library.status("docs").quarantined == ()
