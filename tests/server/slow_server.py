"""Run as a script: a server whose model says one word, waits for a line on standard input, and says another."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from framework.config import Settings
from framework.messages import Delta, Usage
from framework.retrieval.memory import MemoryStore
from framework.testing.scripted import ScriptedChat
from indexers.library import Library
from server.app import create_app
from server.config import ServerConfig
from server.serving import Server, listening_socket, stopped_by_signal, url_of


class Slow(ScriptedChat):
    async def stream(self, *args: Any, **kwargs: Any) -> AsyncIterator[Delta]:
        yield Delta("One")
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        yield Delta(" two", finish_reason="stop", usage=Usage(1, 2))


def main(home: Path, grace: int) -> None:
    settings = Settings({"lectern": {"home": str(home)}}, base=home)
    config = ServerConfig(grace=grace)
    with (
        stopped_by_signal(),
        listening_socket("127.0.0.1", 0) as bound,
        Library(home, MemoryStore(), settings=settings) as library,
    ):
        url = url_of(bound)
        app = create_app(settings, library=library, chat=Slow([], name="slow"), config=config, url=url)
        Server(app, config, lambda: print(url, flush=True)).run([bound])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
