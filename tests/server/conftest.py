"""A real server on a free loopback port, in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import pytest
from fastapi import FastAPI

from framework.config import Settings
from framework.models.base import Embedder
from framework.retrieval.qdrant import EdgeStore
from indexers.library import Library
from server.app import create_app
from server.config import ServerConfig
from server.serving import Server, listening_socket, url_of


@dataclass(frozen=True)
class Running:
    """A server that takes requests. `url` has no path."""

    url: str
    app: FastAPI

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


Serving: TypeAlias = Callable[..., Running]


@contextmanager
def running(
    settings: Settings, config: ServerConfig | None = None, announce: bool = False, **parts: Any
) -> Iterator[Running]:
    """Serve until the block ends, then stop as SIGTERM would; with `announce` it writes server.json."""
    config = config or ServerConfig()
    with listening_socket("127.0.0.1", 0) as bound:
        started = threading.Event()
        url = url_of(bound)
        app = create_app(settings, config=config, url=url if announce else None, **parts)
        server = Server(app, config, started.set)
        thread = threading.Thread(target=server.run, args=([bound],), name="server")
        thread.start()
        try:
            assert started.wait(20), "the server did not start"
            yield Running(url, app)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive(), "the server did not stop"


@pytest.fixture
def library(settings: Settings, embedder: Embedder) -> Iterator[Library]:
    """An empty library whose embedder is loaded already."""
    store = EdgeStore(settings.home / "store")
    with Library(settings.home, store, embedder, settings=settings) as library:
        yield library


@pytest.fixture
def serving(settings: Settings, library: Library) -> Iterator[Serving]:
    """`serving(chat=ScriptedChat([...]))` is a running server; it stops with the test."""
    with ExitStack() as stack:

        def serve(config: ServerConfig | None = None, **parts: Any) -> Running:
            return stack.enter_context(running(settings, config, **{"library": library, **parts}))

        yield serve
