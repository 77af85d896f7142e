"""`/health` answers at once, `/ready` when the default models are loaded, or with the reason why they never will be."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx
import pytest

from framework.errors import ModelUnavailable
from framework.testing.scripted import ScriptedChat
from server.directory import Directory


def readiness(running: Any, until: int) -> httpx.Response:
    """`/ready`, asked until its status is that one, a bounded number of times."""
    for _ in range(1000):
        answer = httpx.get(f"{running.url}/ready")
        if answer.status_code == until:
            break
    return answer


def test_it_is_not_ready_while_models_are_loaded(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = threading.Event()

    async def warm(self: Directory) -> None:
        await asyncio.to_thread(loaded.wait, 20)

    monkeypatch.setattr(Directory, "warm", warm)
    running = serving(chat=ScriptedChat([]))
    assert httpx.get(f"{running.url}/health").json() == {"status": "ok"}
    early = httpx.get(f"{running.url}/ready")
    assert early.status_code == 503
    assert early.headers["retry-after"] == "1"
    assert "being loaded" in early.json()["error"]["message"]
    loaded.set()
    assert "scripted" in readiness(running, 200).json()["models"]


@pytest.mark.parametrize(
    ("error", "told"),
    [(ModelUnavailable("Its weights are damaged."), "weights are damaged"), (ZeroDivisionError("secret"), "the log")],
)
def test_it_tells_why_it_never_will_be(
    serving: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    async def warm(self: Directory) -> None:
        raise error

    monkeypatch.setattr(Directory, "warm", warm)
    answer = readiness(serving(chat=ScriptedChat([])), 503)
    assert answer.status_code == 503
    message = answer.json()["error"]["message"]
    assert told in message
    assert "secret" not in message
