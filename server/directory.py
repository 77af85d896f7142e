"""What a request's `model` names: a chat model, an embedding model, or an agent; each is loaded when first asked for.

Only what this installation offers can be named. A folder, or a hub's id that would first be downloaded, is the
operator's to configure and never a caller's to ask for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from agents import Agent, AgentConfig
from framework.config import Settings
from framework.errors import CallerError, NotFound
from framework.messages import user
from framework.models.base import ChatModel, Embedder, GenerationParams, complete
from framework.models.catalog import Catalog
from framework.models.config import ModelsConfig
from server.agent_replies import AgentResponder
from server.config import ServerConfig
from server.replies import ModelResponder, Responder

if TYPE_CHECKING:
    from indexers.library import Library

T = TypeVar("T")
Kind = Literal["chat", "agent", "embedding"]
PREFIX = "collection:"


class UnknownModel(NotFound):
    """No model, agent or collection goes by that name."""

    code = "model_not_found"

    def __init__(self, name: str) -> None:
        super().__init__(f"There is no model {name[:200]!r}.", hint="GET /v1/models lists them.", field="model")


@dataclass(frozen=True, slots=True)
class Entry:
    """One name that a request may give as its model."""

    id: str
    kind: Kind
    owned_by: str


class Directory:
    """Names to what answers.

    Args:
        library: its collections are agents, as `collection:NAME`, and its embedder embeds.
        agents: further agents by name; they go before models of the same name. The one that the section [agent]
            describes is offered where there is such a section; its manner is that of the collections' agents too.
        chat: the chat model that agents and requests get by default; None: the configured one, loaded when needed.
    """

    def __init__(
        self,
        settings: Settings,
        config: ServerConfig,
        library: Library,
        agents: Mapping[str, Agent],
        chat: ChatModel | None = None,
    ) -> None:
        self.settings = settings
        self.library = library
        self.agents = dict(agents)
        self.collections = config.collections
        self.models = settings.section("models", ModelsConfig)
        self.manner = settings.section("agent", AgentConfig)
        self.default = chat.name if chat else self.models.chat
        self._chat = chat
        self._loaded: dict[tuple[Kind, str], asyncio.Future[Any]] = {}
        self._fixed: dict[str, Entry] = {}
        for entry in self._entries():
            self._fixed.setdefault(entry.id, entry)

    async def entries(self) -> list[Entry]:
        """Agents first, then chat models and embedding models, the default ones ahead."""
        offered = [Entry(PREFIX + name, "agent", "lectern") for name in await self._offered()]
        fixed = list(self._fixed.values())
        return [*(e for e in fixed if e.kind == "agent"), *offered, *(e for e in fixed if e.kind != "agent")]

    async def responder(self, name: str) -> Responder:
        """What answers chat requests under that name.

        Raises:
            UnknownModel: nothing does.
            CallerError: it names an embedding model.
        """
        kind = await self._kind(name)
        if kind == "embedding":
            raise CallerError(f"{name!r} is an embedding model.", hint="Use it with /v1/embeddings.", field="model")
        if kind == "agent":
            return AgentResponder(await self._agent(name))
        return ModelResponder(await self.chat(name))

    async def chat(self, name: str | None = None) -> ChatModel:
        """A chat model that this installation offers; None: the default one."""
        wanted = name or self.default
        if self._chat is not None and wanted == self.default:
            return self._chat
        from framework.models.chat import load_chat

        return await self._once("chat", wanted, lambda: load_chat(wanted, self.models))

    async def embedder(self, name: str) -> Embedder:
        """Raises: UnknownModel, or CallerError for a model that does not embed."""
        kind = await self._kind(name)
        if kind != "embedding":
            raise CallerError(f"{name!r} is no embedding model.", hint="GET /v1/models lists kinds.", field="model")
        from framework.models.embedders import load_embedder

        if name == self.models.embedder:
            return await self._once("embedding", name, lambda: self.library.embedder)
        return await self._once("embedding", name, lambda: load_embedder(name, self.models))

    async def warm(self) -> None:
        """Load what is asked for by default, so that the first request does not wait for it.

        A model here is asked for a token, since its weights come with its first request; one elsewhere is not asked.
        """
        from framework.models.local_chat import LocalChat

        model = await self.chat()
        if isinstance(model, LocalChat):
            await complete(model, [user("Hello")], params=GenerationParams(max_tokens=1))
        await self.embedder(self.models.embedder)

    def close(self) -> None:
        """Let go of the models that were loaded here."""
        for (kind, _), made in self._loaded.items():
            if kind == "chat" and made.done() and not made.cancelled() and hasattr(made.result(), "close"):
                made.result().close()

    async def _agent(self, name: str) -> Agent:
        if name in self.agents:
            return self.agents[name]
        collections = [name.removeprefix(PREFIX)] if name.startswith(PREFIX) else self.manner.collections
        model = await self.chat(self.manner.model)

        def build() -> Agent:
            knowledge = [self.library.retriever(collection) for collection in collections]
            return Agent.from_config(
                self.manner, self.settings, knowledge=knowledge, model=model, tenant=self.library.tenant
            )

        return await self._once("agent", name, build)

    async def _kind(self, name: str) -> Kind:
        if name in self._fixed:
            return self._fixed[name].kind
        if name.startswith(PREFIX) and name.removeprefix(PREFIX) in await self._offered():
            return "agent"
        raise UnknownModel(name)

    async def _offered(self) -> list[str]:
        found = await asyncio.to_thread(self.library.manifest.collections, self.library.tenant)
        return [c.name for c in found if not self.collections or c.name in self.collections]

    def _entries(self) -> Iterator[Entry]:
        """All but the collections, which come and go."""
        for name in (*self.agents, *(() if "agent" not in self.settings.values else (self.manner.name,))):
            yield Entry(name, "agent", "lectern")
        installed = [card for card in Catalog(self.models).cards() if card.origin == "wheel"]
        for name in (self.default, *self.models.endpoints, *(c.name for c in installed if c.kind == "chat")):
            yield Entry(name, "chat", "endpoint" if name in self.models.endpoints else "lectern")
        for name in (self.models.embedder, *(c.name for c in installed if c.kind == "embedding")):
            yield Entry(name, "embedding", "lectern")

    async def _once(self, kind: Kind, name: str, make: Callable[[], T]) -> T:
        """Made in a thread, once for all who wait; one who leaves meanwhile does not stop it, a failure is not kept."""
        key = (kind, name)
        if key not in self._loaded:
            made = asyncio.ensure_future(asyncio.to_thread(make))
            self._loaded[key] = made
            made.add_done_callback(lambda done: self._forget(key, done))
        return cast(T, await asyncio.shield(self._loaded[key]))

    def _forget(self, key: tuple[Kind, str], done: asyncio.Future[Any]) -> None:
        if done.cancelled() or done.exception() is not None:
            self._loaded.pop(key, None)
