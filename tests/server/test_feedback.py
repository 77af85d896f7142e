"""`POST /v1/feedback`: an agent's answer is judged by the run id that it came with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from agents.feedback import Feedback
from framework.config import Settings
from framework.testing.scripted import ScriptedChat
from indexers.library import Library


@pytest.fixture
def url(serving: Any, library: Library, tmp_path: Path) -> str:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "refunds.md").write_text("# Refunds\n\nRefunds are paid within five days of the return.\n")
    assert library.index([folder], "shop").ok
    return f"{serving(chat=ScriptedChat([], name='silent')).url}/v1"


def ask(url: str) -> str:
    question = [{"role": "user", "content": "How long do refunds take?"}]
    body = {"model": "collection:shop", "messages": question}
    reply = httpx.post(f"{url}/chat/completions", json=body, timeout=60).json()
    return str(reply["run"]["run_id"])


def test_an_answer_is_judged_and_stored_with_its_passages(url: str, settings: Settings, library: Library) -> None:
    run_id = ask(url)
    reply = httpx.post(f"{url}/feedback", json={"run_id": run_id, "verdict": "up", "comment": "yes"}).json()
    assert (reply["object"], reply["run_id"], reply["verdict"]) == ("feedback", run_id, "up")
    (judged,) = Feedback(settings.home).all(library.tenant)
    assert (judged.run_id, judged.comment) == (run_id, "yes")
    assert "within five days" in judged.seen.run.passages[0].hit.chunk.text
    again = httpx.post(f"{url}/feedback", json={"run_id": run_id, "correction": "Five days."}).json()
    assert (again["verdict"], again["correction"]) == ("down", "Five days.")
    assert len(Feedback(settings.home).all(library.tenant)) == 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"run_id": "nobody's", "verdict": "up"}, 404),
        ({"verdict": "up"}, 400),
        ({"run_id": "x", "verdict": "fine"}, 400),
        ({"run_id": "x", "verdict": "up", "stars": 5}, 400),
        ({"run_id": "x", "verdict": "up", "comment": "x" * 20_001}, 400),
    ],
)
def test_what_can_not_be_stored_is_refused(url: str, body: dict[str, Any], status: int) -> None:
    reply = httpx.post(f"{url}/feedback", json=body)
    assert reply.status_code == status
    assert reply.json()["error"]["message"]
