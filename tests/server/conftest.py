"""A real server on a free loopback port, in a thread, and the official client for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi import FastAPI

from framework.config import Settings
from server.app import create_app
from server.config import ServerConfig
from server.serving import Server, listening_socket, url_of


@dataclass(frozen=True)
class Running:
    """A server that takes requests. `url` has no path."""

    url: str
    app: FastAPI
    server: Server

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@contextmanager
def running(settings: Settings, config: ServerConfig = ServerConfig(), **parts: Any) -> Iterator[Running]:
    """Serve until the block ends, then stop as SIGTERM would."""
    with listening_socket("127.0.0.1", 0) as bound:
        started = threading.Event()
        app = create_app(settings, config=config, **parts)
        server = Server(app, config, started.set)
        thread = threading.Thread(target=server.run, args=([bound],), name="server")
        thread.start()
        try:
            assert started.wait(20), "the server did not start"
            yield Running(url_of(bound), app, server)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive(), "the server did not stop"


@pytest.fixture
def serving(settings: Settings) -> Iterator[Callable[..., Running]]:
    """`serving(chat=ScriptedChat([...]))` is a running server; it stops with the test."""
    with ExitStack() as stack:
        yield lambda config=ServerConfig(), **parts: stack.enter_context(running(settings, config, **parts))
