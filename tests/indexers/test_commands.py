from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from framework.cli import root
from framework.config import Settings
from framework.documents import Chunk, Hit
from framework.errors import LecternError, StoreCorrupt
from framework.models import embedders
from framework.retrieval.qdrant import EdgeStore
from framework.testing.fakes import HashEmbedder
from indexers.library import Library
from indexers.terminal import _excerpt, _headings


@pytest.fixture(autouse=True)
def light_embedder(monkeypatch: pytest.MonkeyPatch, docs: Path) -> None:
    """Commands run beside the folder `docs`, without weights."""
    monkeypatch.setattr(embedders, "load_embedder", lambda *_: HashEmbedder())
    monkeypatch.chdir(docs.parent)


def lectern(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(root, arguments, standalone_mode=False)
    assert result.exception is None, result.exception
    assert (result.return_value or 0) == status, result.output
    return result


def test_index_then_search() -> None:
    assert "docs: 3 added; 5 chunks written, 5 of them embedded" in lectern("index", "docs", "-c", "docs").output
    assert "docs: 3 unchanged; 0 chunks written" in lectern("index", "-c", "docs", "docs").output
    output = lectern("search", "refund deadlines", "-c", "docs", "-k", "2").output
    assert output.startswith("1. Refunds > Deadlines\n   docs/guide/refunds.md[0:35]  dense ")
    assert "   A refund takes ten days.\n" in output


@pytest.mark.parametrize(("k", "told"), [("1", "1 hit, "), ("2", "2 hits, ")])
def test_search_tells_how_many_hits_it_shows(k: str, told: str) -> None:
    lectern("index", "docs", "-c", "docs")
    assert f"\n{told}" in lectern("search", "refund", "-c", "docs", "-k", k).output


def test_search_as_json_with_options() -> None:
    lectern("index", "docs", "-c", "docs")
    options = ["--mode", "lexical", "--mmr", "0.5", "--filter", "team=billing", "--filter", "title=Refunds", "--json"]
    found = json.loads(lectern("search", "refund", "-c", "docs", *options).stdout)
    assert (found["mode"], found["hits"][0]["chunk"]["document_id"]) == ("lexical", "docs/guide/refunds.md")
    assert {"lexical", "mmr"} <= found["hits"][0]["scores"].keys()


def test_quarantine_sets_the_exit_status(docs: Path) -> None:
    (docs / "blob.txt").write_bytes(bytes(range(256)) * 9)
    result = lectern("index", "docs", "-c", "docs", status=1)
    assert "3 added" in result.output
    assert "1 quarantined:\n  docs/blob.txt: It is binary data, not text." in result.output
    assert "docs/blob.txt" in lectern("index", "status", "-c", "docs", status=1).output
    report = json.loads(lectern("index", "docs", "-c", "docs", "--json", status=1).stdout)
    assert report["quarantined"][0]["document_id"] == "docs/blob.txt"


def test_documents_and_their_names_do_not_drive_the_terminal(docs: Path) -> None:
    (docs / "esc\x1b]0;name\x07\n.md").write_text(
        "# Reset \x1b[2J\n\nA body \x1b]0;body that says esc.\n" + "More. " * 99
    )
    (docs / "blob\x1b[1m.txt").write_bytes(bytes(range(256)) * 9)
    shown = [
        lectern("index", "docs", "-c", "docs", "--dry-run").output,
        lectern("index", "docs", "-c", "docs", status=1).output,
        lectern("search", "esc body reset", "-c", "docs").output,
        lectern("collections", "show", "docs").output,
    ]
    assert "A body ]0;body that says esc." in shown[2]
    assert not [text for text in shown if "\x1b" in text or "\x07" in text]


def test_a_dry_run_changes_nothing() -> None:
    output = lectern("index", "docs", "-c", "docs", "--dry-run").output
    assert "would be 3 added. Nothing was done." in output
    assert "would add docs/intro.md" in output
    assert "no collections yet" in lectern("collections", "list").output


def test_status_verify_and_repair() -> None:
    lectern("index", "docs", "-c", "docs")
    assert "docs: 3 documents, 5 chunks" in lectern("index", "status", "-c", "docs").output
    assert "agree on 5 points" in lectern("index", "verify", "-c", "docs").output
    with Library.open() as library:
        id = next(library.store.payloads("default", "docs"))[0]
        library.store.delete("default", "docs", [id])
    assert "1 missing" in lectern("index", "verify", "-c", "docs", status=1).output
    assert "1 missing; repaired" in lectern("index", "verify", "-c", "docs", "--repair").output
    assert json.loads(lectern("index", "verify", "-c", "docs", "--json").stdout)["missing"] == []


def test_a_folder_called_status_is_indexed_as_a_path(docs: Path) -> None:
    docs.rename(docs.parent / "status")
    assert "3 added" in lectern("index", "./status", "-c", "docs").output


def test_collections_are_listed_shown_and_removed() -> None:
    lectern("index", "docs", "-c", "docs")
    assert lectern("collections", "list").output == "docs: 3 documents, 5 chunks, hash\n"
    assert "  docs/guide/refunds.md\n" in lectern("collections", "show", "docs").output
    assert len(json.loads(lectern("collections", "show", "docs", "--json").stdout)["items"]) == 3
    lectern("collections", "remove-document", "docs", "docs/notes.txt")
    assert json.loads(lectern("collections", "list", "--json").stdout)[0]["documents"] == 2
    assert "Removed the collection docs with 2 documents." in lectern("collections", "remove", "docs", "--yes").output
    assert "no collections yet" in lectern("collections", "list").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "x", "-c", "nothing"], "There is no collection 'nothing'"),
        (["index", "nowhere", "-c", "docs"], "There is no file or folder"),
        (["index", "status", "-c", "nothing"], "There is no collection"),
        (["index", "docs", "-c", " docs"], "can't name a collection"),
        (["collections", "remove", "nothing", "-y"], "There is no collection"),
    ],
)
def test_wrong_calls_say_what_is_wrong(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(root, arguments, standalone_mode=False)
    assert isinstance(result.exception, LecternError)
    assert message in str(result.exception)


def test_a_second_process_is_told_who_holds_the_store(tmp_path: Path, docs: Path) -> None:
    """At once, and by name."""
    lectern("index", "docs", "-c", "docs")
    script = (
        "import sys; from pathlib import Path; from framework.retrieval.qdrant import EdgeStore\n"
        "store = EdgeStore(Path(sys.argv[1])); store.count('default', 'docs')\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "home" / "store")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        result = CliRunner().invoke(root, ["search", "refund", "-c", "docs"], standalone_mode=False)
        assert f"process {holder.pid}" in str(result.exception)
        assert "docs: 3 documents" in lectern("index", "status", "-c", "docs").output
        holder.kill()
    lectern("search", "refund", "-c", "docs")


def test_search_imports_no_framework_for_training_or_serving() -> None:
    script = (
        "import sys; from indexers.commands import search; from indexers.library import Library;"
        "import framework.retrieval.retriever, framework.retrieval.qdrant, indexers.terminal, indexers.loopback;"
        "print([m for m in ('torch', 'transformers', 'langgraph', 'fastapi', 'bs4', 'lxml', 'markdown_it') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_excerpt_is_cut_around_the_words_of_the_query() -> None:
    text = "filler " * 100 + "the refund takes ten days " + "filler " * 100
    excerpt = _excerpt(text, ["refunds", "days"])
    assert "the refund takes ten days" in excerpt
    assert excerpt.startswith("… ")
    assert excerpt.endswith(" …")
    assert len(excerpt) < 400
    assert _excerpt("Short.\n\n\nText.", ["x"]) == "Short.\nText."


def test_a_title_that_is_the_first_heading_is_said_once() -> None:
    chunk = Chunk("d", "t", 0, 1, 0, heading_path=("A", "B"))
    assert _headings(Hit("i", chunk, "v", 0.0, title="A")) == ["A", "B"]
    assert _headings(Hit("i", chunk, "v", 0.0, title="T")) == ["T", "A", "B"]
    assert _headings(Hit("i", Chunk("d", "t", 0, 1, 0), "v", 0.0)) == ["d"]


def test_the_embedded_store_is_closed_with_the_library(tmp_path: Path, docs: Path) -> None:
    lectern("index", "docs", "-c", "docs")
    store = EdgeStore(tmp_path / "home" / "store")
    assert store.count("default", "docs") == 5
    store.close()


def test_a_lost_store_directory_is_told_and_repaired(settings: Settings) -> None:
    lectern("index", "docs", "-c", "docs")
    found = lectern("search", "refund", "-c", "docs").output
    shutil.rmtree(settings.home / "store")
    failed = CliRunner().invoke(root, ["search", "refund", "-c", "docs"], standalone_mode=False)
    assert isinstance(failed.exception, StoreCorrupt)
    command = failed.exception.hint.partition(": ")[2].split()
    assert command == ["lectern", "index", "verify", "-c", "docs", "--repair"]
    lectern(*command[1:])
    again = lectern("search", "refund", "-c", "docs").output
    assert again.splitlines()[:-1] == found.splitlines()[:-1]
