"""Runs the application under uvicorn until it is told to stop."""

from __future__ import annotations

import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from framework.config import Settings
from framework.errors import OperatorError
from framework.telemetry import configure_logging
from server.app import create_app
from server.config import ServerConfig
from server.presence import refuse_second

HEADER_LIMIT = 64 * 1024


class Server(uvicorn.Server):
    """uvicorn's, telling when it takes requests, and ending as it was asked to instead of by the signal."""

    def __init__(self, app: FastAPI, config: ServerConfig, started: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                h11_max_incomplete_event_size=HEADER_LIMIT,
                timeout_graceful_shutdown=config.grace,
            )
        )
        self._on_start = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_start()


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that is bound, so that its port is known before the application is made.

    Raises:
        OperatorError: the address can't be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)  # asyncio turns Nagle's algorithm off only where TCP is named
    except OSError as error:
        raise OperatorError(f"The address {host!r} can't be resolved: {error}.", field="server.host") from error
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        hint = "Another program may have it: choose another with --port, or --port 0 for a free one."
        raise OperatorError(f"Can't listen on {host}:{port}: {error}.", hint=hint, field="server.port") from error
    return bound


def url_of(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if bound.family == socket.AF_INET6 else f"http://{host}:{port}"


def serve_forever(settings: Settings, config: ServerConfig, tell: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, then let running requests finish for `config.grace` seconds.

    Raises:
        ConfigError: the host is reachable from elsewhere and that was not allowed.
        StoreLocked: another server holds this home.
        OperatorError: the address can't be had.
    """
    from indexers.library import Library

    config.check_reach()
    configure_logging("info")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    refuse_second(settings.home)
    with stopped_by_signal(), listening_socket(config.host, config.port) as bound, Library.open(settings) as library:
        url = url_of(bound)
        app = create_app(settings, library=library, config=config, url=url)
        Server(app, config, lambda: tell(_banner(url, app))).run([bound])


def _banner(url: str, app: FastAPI) -> str:
    model = app.state.server.directory.default
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    return (
        f"Lectern serves {url}/v1 and is stopped by Ctrl-C. Try:\n\n"
        f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\\n    -d '{body}'\n"
    )


@contextmanager
def stopped_by_signal() -> Iterator[None]:
    """uvicorn raises the signal again when it is done; SIGTERM's own handling would then skip what is left to do."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(0)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
