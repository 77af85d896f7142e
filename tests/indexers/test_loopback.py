"""The same library through a server that holds the store."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from framework.bridge import run_sync
from framework.config import Settings
from framework.documents import Document
from framework.errors import CallerError, Conflict, LecternError, NotFound, OperatorError
from framework.retrieval.filters import All, AnyOf, Eq, Filter, In, Not, Range
from indexers.library import Library, open_library
from indexers.loopback import LoopbackLibrary, ServerAddress, find_server, run_operation
from indexers.report import Progress
from indexers.wire import filter_from_wire, filter_to_wire


@pytest.fixture
def remote(library: Library, settings: Settings) -> Iterator[LoopbackLibrary]:
    """`library` as another process sees it: a small server stands in for `lectern serve`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            arguments = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.headers["Authorization"] != "Bearer secret":
                body = json.dumps({"error": {"message": "The token is missing or wrong."}}).encode()
                self.send_response(401)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                return
            self.send_response(200)
            self.end_headers()
            try:
                operation = self.path.removeprefix("/internal/")
                self._line("result", run_operation(library, operation, arguments, self._progress))
            except LecternError as error:
                told = {
                    "type": type(error).__name__,
                    "message": error.message,
                    "hint": error.hint,
                    "field": error.field,
                }
                self._line("error", told)

        def _progress(self, progress: Progress) -> None:
            self._line("progress", asdict(progress))

        def _line(self, kind: str, value: object) -> None:
            self.wfile.write(json.dumps({kind: value}).encode() + b"\n")

        def log_message(self, format: str, *args: object) -> None:
            """Tests print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = ServerAddress(os.getpid(), f"http://127.0.0.1:{server.server_port}", "secret")
        yield LoopbackLibrary(address, "default", settings)
        server.shutdown()


def test_everything_goes_through(remote: LoopbackLibrary, library: Library, docs: Path) -> None:
    steps: list[Progress] = []
    assert remote.index([docs], "docs", dry_run=True).dry_run
    report = remote.index([docs], "docs", progress=steps.append)
    assert len(report.added) == 3
    assert steps[-1].documents == 3
    assert remote.index_documents([Document("a", "One.", metadata={"n": 1})], "notes").added == ("a",)
    assert remote.collections() == library.collections()
    assert remote.status("docs") == library.status("docs")
    assert remote.documents("docs") == library.documents("docs")
    assert remote.verify("docs", repair=True).ok
    remote.remove_document("docs", "docs/notes.txt")
    remote.remove_collection("notes")
    assert [item.name for item in library.collections()] == ["docs"]
    assert library.status("docs").documents == 2


def test_searches_and_the_corpus_are_the_same(remote: LoopbackLibrary, library: Library, docs: Path) -> None:
    library.index([docs], "docs")
    wanted = All((Eq("team", "billing"), Not(Eq("title", "x"))))
    here = run_sync(library.retriever("docs").search("refund deadline", k=2, mode="lexical", filter=wanted))
    there = run_sync(remote.retriever("docs").search("refund deadline", k=2, mode="lexical", filter=wanted))
    assert there.hits == here.hits
    assert (there.mode, there.asked, there.shortfall, there.notices) == ("lexical", 2, here.shortfall, here.notices)
    ids = [hit.id for hit in here.hits]
    assert remote.corpus.hits("default", "docs", ids) == library.corpus.hits("default", "docs", ids)
    id = here.hits[0].chunk.document_id
    assert remote.corpus.document("default", "docs", id) == library.corpus.document("default", "docs", id)


def test_paths_are_those_of_the_caller(
    remote: LoopbackLibrary, docs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(docs.parent)
    assert remote.index(["docs"], "docs").ok
    assert remote.status("docs").roots == (str(docs),)


def test_errors_come_back_as_what_they_were(remote: LoopbackLibrary, docs: Path) -> None:
    with pytest.raises(NotFound, match="There is no collection 'nothing'") as caught:
        remote.status("nothing")
    assert "lectern index PATH -c nothing" in caught.value.hint
    remote.index([docs], "docs")
    with pytest.raises(Conflict, match="is the file"):
        remote.index_documents([Document("docs/intro.md", "x")], "docs")
    with pytest.raises(CallerError):
        run_sync(remote.retriever("docs").search(""))


def test_another_tenant_sees_nothing(remote: LoopbackLibrary, docs: Path) -> None:
    remote.index([docs], "docs")
    remote.tenant = "other"
    assert remote.collections() == []
    with pytest.raises(NotFound):
        remote.corpus.document("other", "docs", "docs/intro.md")


def test_a_wrong_token_or_a_server_that_is_gone_is_told(remote: LoopbackLibrary, settings: Settings) -> None:
    with pytest.raises(OperatorError, match="token is missing or wrong"):
        LoopbackLibrary(ServerAddress(1, remote.address.url, "wrong"), "default", settings).collections()
    with pytest.raises(OperatorError, match=r"can't be used: .*refused.*remove .*server\.json"):
        LoopbackLibrary(ServerAddress(1, "http://127.0.0.1:9", ""), "default", settings).collections()


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [("shutdown", {}), ("__class__", {}), ("status", {}), ("status", {"collection": "a", "more": 1})],
)
def test_unknown_operations_and_arguments_are_refused(library: Library, operation: str, arguments: object) -> None:
    with pytest.raises(CallerError):
        run_operation(library, operation, arguments)  # type: ignore[arg-type]  # as they come from outside


@pytest.mark.parametrize(
    "filter",
    [
        Eq("a.b", "x"),
        In("k", (1, 2.5, True, "$z")),
        Range("n", None, 3),
        All((Eq("a", 1), AnyOf((Not(Eq("b", False)), Range("c", 1.5, None))))),
    ],
)
def test_filters_survive_the_wire(filter: Filter) -> None:
    assert filter_from_wire(json.loads(json.dumps(filter_to_wire(filter)))) == filter


@pytest.mark.parametrize("wire", [None, {}, {"eq": ["a"]}, {"eq": ["a", None]}, {"in": ["a", 3]}, {"all": 1}, "x"])
def test_what_is_no_filter_is_refused(wire: object) -> None:
    with pytest.raises(CallerError, match="is no filter"):
        filter_from_wire(wire)


def test_a_filter_without_end_is_refused() -> None:
    wire: object = {"eq": ["a", 1]}
    for _ in range(100):
        wire = {"not": wire}
    with pytest.raises(CallerError, match="nests deeper"):
        filter_from_wire(wire)


def test_only_a_living_servers_file_counts(tmp_path: Path, settings: Settings) -> None:
    home = settings.home
    home.mkdir(parents=True)
    file = home / "server.json"
    assert find_server(home) is None
    for text in ("{", "[]", '{"pid": "x"}', json.dumps({"pid": 2**22 + 1, "url": "http://127.0.0.1:1", "token": "t"})):
        file.write_text(text)
        assert find_server(home) is None
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        file.write_text(json.dumps({"pid": os.getppid(), "url": url, "token": "t"}))
        assert find_server(home) == ServerAddress(os.getppid(), url, "t")
        with open_library(settings) as opened:
            assert isinstance(opened, LoopbackLibrary)
    with suppress(FileNotFoundError):
        file.unlink()
    with open_library(settings, "other") as opened:
        assert isinstance(opened, Library)
        assert opened.tenant == "other"


def test_the_file_of_a_killed_server_whose_id_is_used_again_does_not_count(settings: Settings) -> None:
    settings.home.mkdir(parents=True)
    file = settings.home / "server.json"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        file.write_text(json.dumps({"pid": other.pid, "url": "http://127.0.0.1:1", "token": "t"}))
        assert find_server(settings.home) is not None
        before = time.time() - 60
        os.utime(file, (before, before))
        assert find_server(settings.home) is None
        other.communicate(b"\n")


def test_the_file_of_a_zombie_does_not_count(settings: Settings) -> None:
    settings.home.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as killed:
        address = {"pid": killed.pid, "url": "http://127.0.0.1:1", "token": "t"}
        (settings.home / "server.json").write_text(json.dumps(address))
        killed.kill()
        os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)  # dead, and not reaped
        assert find_server(settings.home) is None


def test_where_nothing_listens_the_library_is_opened_here(settings: Settings) -> None:
    settings.home.mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    (settings.home / "server.json").write_text(json.dumps({"pid": os.getppid(), "url": url, "token": "t"}))
    assert find_server(settings.home) is not None
    with open_library(settings) as opened:
        assert isinstance(opened, Library)
        assert opened.collections() == []
