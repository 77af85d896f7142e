"""What the routes share: the configuration, the library, the directory of models, and whether all of it is loaded."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from framework.errors import LecternError, OperatorError
from server.config import ServerConfig
from server.directory import Directory

if TYPE_CHECKING:
    from indexers.library import Library

WORKERS = 16
logger = logging.getLogger("lectern.server")


@dataclass
class ServerState:
    """One server's state, made when it starts.

    Attributes:
        token: secret of this process, which the machine's own commands read from `server.json`.
        started: Unix time.
        workers: threads for the internal operations, which may take long, so that they hold up no request's own.
    """

    config: ServerConfig
    library: Library
    directory: Directory
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    started: int = field(default_factory=lambda: int(time.time()))
    workers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(WORKERS, "lectern-internal"))
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    failure: str | None = None

    async def warm(self) -> None:
        """Load the default models; the server answers meanwhile and `/ready` tells when they are there."""
        began = time.perf_counter()
        try:
            await self.directory.warm()
        except LecternError as error:
            self.failure = str(error)
            logger.error("the default models can't be loaded", extra={"fields": {"error": self.failure}})
            return
        except Exception:  # the task's own boundary: nobody awaits it, and /ready must not wait for ever
            self.failure = "the log has the details."
            logger.exception("the default models can't be loaded")
            return
        self.ready.set()
        logger.info("ready", extra={"fields": {"seconds": round(time.perf_counter() - began, 2)}})

    def close(self) -> None:
        """End what was started here: operations at their next report, models with their next token."""
        self.workers.shutdown()
        self.directory.close()

    def check_ready(self) -> None:
        """Raises: OperatorError: the default models are not loaded."""
        if self.failure is not None:
            raise OperatorError(f"The default models can't be loaded: {self.failure}")
        if not self.ready.is_set():
            raise OperatorError("The default models are being loaded.", hint="Try again in a few seconds.")


def _state(request: Request) -> ServerState:
    state = request.app.state.server
    assert isinstance(state, ServerState)
    return state


State = Annotated[ServerState, Depends(_state)]
