"""`lectern`, with a scripted model to be had by name: run by test_commands.py in a process of its own.

    python scripted_lectern.py chat -m scripted:FILE

A turn "HANG" in the script never ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from framework.cli import main
from framework.messages import Delta
from framework.models.chat import PROVIDERS
from framework.testing.scripted import ScriptedChat, scripted_from_file


class Hanging(ScriptedChat):
    """Writes a word and hangs, where the script says so."""

    async def stream(self, messages: Any, **options: Any) -> AsyncIterator[Delta]:
        async for delta in super().stream(messages, **options):
            yield delta
            if delta.content == "HANG":
                await asyncio.Event().wait()


if __name__ == "__main__":
    PROVIDERS.register("scripted", lambda path: Hanging(scripted_from_file(path).turns))
    main()
