"""The application: routes inside, middleware around, and what lives as long as the server does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.middleware import Middleware

from framework.config import Settings
from framework.models.base import ChatModel
from server import errors
from server.config import ServerConfig
from server.directory import Directory
from server.middleware import Gate, HostGuard, Intake, Log
from server.presence import announced
from server.routes import adapters, embeddings, engines, feedback, health, internal, models
from server.routes import chat as chat_completions
from server.schemas import ChatChunk
from server.state import ServerState

if TYPE_CHECKING:
    from agents import Agent
    from indexers.library import Library

CLOSE_SECONDS = 5.0


def create_app(
    settings: Settings | None = None,
    *,
    library: Library | None = None,
    agents: Mapping[str, Agent] | None = None,
    chat: ChatModel | None = None,
    config: ServerConfig | None = None,
    url: str | None = None,
) -> FastAPI:
    """The ASGI application.

    Args:
        settings: None reads lectern.toml and the environment.
        library: what is searched; None opens the settings' own, and closes it when the server stops.
        agents: agents by the name that requests give as their model, beside those of the configuration.
        chat: the default chat model; None: the configured one.
        config: in place of the settings' section [server].
        url: where the server will be reached; given, it announces itself there to this machine's commands.
    """
    settings = settings or Settings.load()
    config = config or settings.section("server", ServerConfig)
    gate = Gate(config.max_concurrent, config.max_waiting)
    life = partial(
        _lifespan,
        settings=settings,
        config=config,
        library=library,
        agents=agents or {},
        chat=chat,
        gate=gate,
        url=url,
    )
    app = FastAPI(
        title="Lectern",
        version=version("lectern"),
        summary="Chat completions with models and citing agents, and embeddings, in OpenAI's API.",
        docs_url=None,
        redoc_url=None,
        lifespan=life,
        middleware=[
            Middleware(Log),
            Middleware(HostGuard, names=None if config.allow_remote else [config.host, *config.allowed_hosts]),
            Middleware(Intake, gate, config.max_body, config.body_timeout, config.stall_timeout),
        ],
    )
    app.state.gate = gate
    errors.install(app)
    for routes in (chat_completions, feedback, embeddings, models, adapters, engines, health, internal):
        app.include_router(routes.router)
    app.openapi = _described(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend the description
    return app


@asynccontextmanager
async def _lifespan(
    app: FastAPI,
    *,
    settings: Settings,
    config: ServerConfig,
    library: Library | None,
    agents: Mapping[str, Agent],
    chat: ChatModel | None,
    gate: Gate,
    url: str | None,
) -> AsyncIterator[None]:
    """Open what requests use and announce the server; close it all when the last request is gone."""
    async with AsyncExitStack() as stack:
        opened = library or await _opened(settings, stack)
        directory = Directory(settings, config, opened, agents, chat)
        state = app.state.server = ServerState(config, opened, directory)
        if url is not None:
            stack.enter_context(announced(settings.home, url, state.token))
        warming = asyncio.ensure_future(state.warm())
        yield
        warming.cancel()
        await asyncio.wait((warming,))
        await gate.emptied(CLOSE_SECONDS)
        await state.directory.drain(CLOSE_SECONDS)
        await asyncio.to_thread(state.close)


async def _opened(settings: Settings, stack: AsyncExitStack) -> Library:
    from indexers.library import Library

    library = await asyncio.to_thread(Library.open, settings)
    stack.push_async_callback(asyncio.to_thread, library.close)
    return library


def _described(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """The description, with the schema of a stream's events added: no response model mentions it."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            chunk = ChatChunk.model_json_schema(ref_template="#/components/schemas/{model}")
            schema["components"]["schemas"] |= {**chunk.pop("$defs"), "ChatChunk": chunk}
            app.openapi_schema = schema
        return app.openapi_schema

    return describe
