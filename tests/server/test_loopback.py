"""The machine's own commands, while a server holds the store: through it, and only with its token."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from framework.bridge import run_sync
from framework.config import Settings
from framework.errors import CallerError, NotFound, StoreLocked
from framework.testing.scripted import ScriptedChat
from indexers.library import Library
from indexers.loopback import LoopbackLibrary, ServerAddress
from server.presence import announced, refuse_second
from server.routes.internal import CallerLeft


@pytest.fixture
def running(serving: Any) -> Iterator[Any]:
    return serving(chat=ScriptedChat([], name="silent"), announce=True)


@pytest.fixture
def remote(running: Any, settings: Settings) -> LoopbackLibrary:
    """The library as another process sees it: the file names this process, so it is read by hand."""
    found = json.loads((settings.home / "server.json").read_text())
    assert found["pid"] == os.getpid()
    return LoopbackLibrary(ServerAddress(**found), "default", settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number}.md").write_text(f"# Page {number}\n\nThe answer of page {number} is {number * 7}.\n")
    return folder


def test_indexing_and_searching_go_through_the_server(remote: LoopbackLibrary, folder: Path) -> None:
    seen: list[float] = []
    report = remote.index([folder], "pages", progress=lambda progress: seen.append(progress.share))
    assert len(report.added) == 30
    assert seen
    assert seen == sorted(seen)
    found = run_sync(remote.retriever("pages").search("What is the answer of page 11?", k=3))
    assert any("77" in hit.chunk.text for hit in found.hits)
    assert [status.name for status in remote.collections()] == ["pages"]


def test_errors_cross_with_their_kind(remote: LoopbackLibrary, folder: Path) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        remote.status("nowhere")
    with pytest.raises(CallerError):
        remote.index([], "pages")
    with pytest.raises(NotFound, match="no operation"):
        remote.call("format_disk", {}, dict)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", "Bearer tökén", "x" * 10_000])
def test_without_the_token_nothing_is_done(running: Any, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode()}
    answer = httpx.post(f"{running.url}/internal/collections", json={}, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["type"] == "authentication_error"


def test_another_host_name_is_refused_even_with_the_token(running: Any, settings: Settings) -> None:
    token = json.loads((settings.home / "server.json").read_text())["token"]
    headers = {"Authorization": f"Bearer {token}", "Host": "evil.example"}
    assert httpx.post(f"{running.url}/internal/collections", json={}, headers=headers).status_code == 421


def test_the_file_is_its_users_alone(running: Any, settings: Settings) -> None:
    mode = stat.S_IMODE((settings.home / "server.json").stat().st_mode)
    assert mode == 0o600
    assert not list(settings.home.glob(".server.json*"))


def test_the_loop_answers_while_a_run_is_at_work(running: Any, remote: LoopbackLibrary, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    text = "\n\n".join(f"Paragraph {n} tells of the river, the town and its bridges." * 3 for n in range(40))
    for number in range(2):
        (folder / f"{number}.txt").write_text(f"{number}\n\n{text}")
    work = threading.Thread(target=lambda: remote.index([folder], "many"))
    work.start()
    waits: list[float] = []
    with httpx.Client() as client:
        while work.is_alive():
            began = time.perf_counter()
            assert client.get(f"{running.url}/health").status_code == 200
            waits.append(time.perf_counter() - began)
    work.join()
    assert len(waits) > 10
    assert sorted(waits)[len(waits) // 2] < 0.25


def test_a_command_that_is_interrupted_ends_the_run(
    running: Any, remote: LoopbackLibrary, folder: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = threading.Event(), threading.Event()
    index = library.index

    def held(*args: Any, progress: Any, **kwargs: Any) -> Any:
        """Stays at its first report until that raises, which it does when the server knows that the caller left."""

        def report(step: Any) -> None:
            begun.set()
            for _ in range(1000):
                progress(step)
                ended.wait(0.01)
            pytest.fail("the caller's leaving was not noticed")

        try:
            return index(*args, progress=report, **kwargs)
        except CallerLeft:
            ended.set()
            raise

    monkeypatch.setattr(library, "index", held)
    body = json.dumps({"paths": [str(folder)], "collection": "pages"}).encode()
    head = f"POST /internal/index HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {remote.address.token}\r\n"
    with closing(socket.create_connection(("127.0.0.1", running.port))) as client:
        client.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        assert begun.wait(20)
    assert ended.wait(20)
    monkeypatch.undo()
    assert library.index([folder], "pages").ok


def test_a_home_has_one_server(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        alive = {"pid": other.pid, "url": "http://127.0.0.1:1", "token": "t"}
        (tmp_path / "server.json").write_text(json.dumps(alive))
        with pytest.raises(StoreLocked, match=f"process {other.pid} at http://127.0.0.1:1"):
            refuse_second(tmp_path)
        other.communicate(b"\n")
    refuse_second(tmp_path)


def test_a_dead_servers_file_is_replaced(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    stale = {"pid": dead.pid, "url": "http://127.0.0.1:1", "token": "t"}
    (tmp_path / "server.json").write_text(json.dumps(stale))
    with announced(tmp_path, "http://127.0.0.1:2", "u"):
        assert json.loads((tmp_path / "server.json").read_text())["token"] == "u"
    assert not (tmp_path / "server.json").exists()


def test_a_successors_file_is_left_alone(tmp_path: Path) -> None:
    with announced(tmp_path, "http://127.0.0.1:1", "t"):
        (tmp_path / "server.json").write_text(json.dumps({"pid": 1, "url": "", "token": "other"}))
    assert (tmp_path / "server.json").exists()
