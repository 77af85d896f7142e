"""A model that runs in the server: its figures, its limits, whom it works for, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from framework.config import Settings
from framework.messages import Delta
from framework.models import engines
from framework.models.base import TENANT
from framework.testing.scripted import ScriptedChat
from framework.testing.tiny_chat import END, write_tiny_chat
from indexers.library import Library
from server.app import create_app
from server.config import ServerConfig

HELLO = [{"role": "user", "content": "Hello"}]
ENDLESS = {"messages": HELLO, "logit_bias": {str(END): -100}, "max_tokens": 200}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_chat(tmp_path_factory.mktemp("served"))


@asynccontextmanager
async def served(
    settings: Settings, library: Library, folder: Path, **engine: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, str]]:
    """A client of an application whose default model is the tiny one, and that model's name."""
    given = {"device": "cpu", "dtype": "float32", "kv_dtype": "float32", "kv_memory_mb": 4, **engine}
    values = {**settings.values, "models": {"chat": str(folder), "engine": given}}
    app = create_app(Settings(values, settings.base), library=library, config=ServerConfig(max_concurrent=60))
    async with app.router.lifespan_context(app):
        await app.state.server.ready.wait()
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield client, str(folder)


async def test_the_figures_of_its_engines_are_told(settings: Settings, library: Library, folder: Path) -> None:
    async with served(settings, library, folder, max_sequences=5) as (client, name):
        for _ in range(2):
            await client.post("/v1/chat/completions", json={"model": name, **ENDLESS})
        answer = await client.get("/v1/engines")
        assert answer.status_code == 200
        (mine,) = [row for row in answer.json()["data"] if row["generated_tokens"] == 401]
        described = (await client.get("/openapi.json")).json()["components"]["schemas"]["EngineBody"]
    assert mine["finished"] == 3  # one token was asked for when the model was loaded
    assert mine["ttft"]["p95"] >= mine["ttft"]["p50"] > 0
    assert 0 < mine["cache_hit_rate"] < 1
    assert (mine["running"], mine["waiting"], mine["blocks_used"]) == (0, 0, 0)
    assert mine["blocks_total"] > 100
    assert set(mine) == set(described["properties"])


async def test_a_full_queue_answers_429_and_when_to_come_again(
    settings: Settings, library: Library, folder: Path
) -> None:
    async with served(settings, library, folder, max_sequences=1, max_waiting=1) as (client, name):
        body = {"model": name, **ENDLESS}
        answers = await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for _ in range(30)))
        streamed = await asyncio.gather(
            *(client.post("/v1/chat/completions", json={**body, "stream": True}) for _ in range(30))
        )
    for group in (answers, streamed):
        assert {answer.status_code for answer in group} == {200, 429}
        refused = next(answer for answer in group if answer.status_code == 429)
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"


async def test_what_runs_is_finished_when_the_server_stops(settings: Settings, library: Library, folder: Path) -> None:
    async with served(settings, library, folder, max_sequences=7) as (client, name):
        asked = asyncio.create_task(client.post("/v1/chat/completions", json={"model": name, **ENDLESS}))
        while not any(figures.running for _, figures in engines.statistics()):  # noqa: ASYNC110  another thread's
            await asyncio.sleep(0)
    answer = await asked
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 200
    assert name not in [known for known, _ in engines.statistics()]


class Asked(ScriptedChat):
    """Remembers whom it worked for."""

    tenant = ""

    async def stream(self, *args: Any, **kwargs: Any) -> AsyncIterator[Delta]:
        self.tenant = TENANT.get()
        async for delta in super().stream(*args, **kwargs):
            yield delta


@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_knows_the_tenant_it_works_for(settings: Settings, library: Library, stream: bool) -> None:
    chat = Asked(["Yes."])
    app = create_app(settings, library=library, chat=chat)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
    ):
        body = {"model": chat.name, "messages": HELLO, "stream": stream}
        await client.post("/v1/chat/completions", json=body)
    assert chat.tenant == library.tenant != ""


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"stop_token_ids": [10**6]}, "stop_token_ids"),
        ({"logit_bias": {"1000000": 1}}, "logit_bias"),
        ({"structured_outputs": {"json": {"type": "integer", "multipleOf": 99991}}}, "structured_outputs"),
    ],
)
async def test_what_only_the_model_can_refuse_is_named_as_the_request_names_it(
    asked: dict[str, Any], field: str, settings: Settings, library: Library, folder: Path
) -> None:
    async with served(settings, library, folder) as (client, name):
        for stream in (False, True):
            body = {"model": name, "messages": HELLO, "stream": stream, **asked}
            answer = await client.post("/v1/chat/completions", json=body)
            assert f'"param": "{field}"' in answer.text
