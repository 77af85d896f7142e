"""What a request's `model` names: a chat model, an embedding model, or an agent; each is loaded when first asked for.

Only what this installation offers can be named. A folder, or a hub's id that would first be downloaded, is the
operator's to configure and never a caller's to ask for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from agents import Agent, AgentConfig
from framework.config import Settings
from framework.errors import CallerError, LecternError, NotFound
from framework.messages import user
from framework.models.adapters import AdapterStore, base_id
from framework.models.base import ChatModel, Embedder, GenerationParams, complete
from framework.models.catalog import Catalog, Resolved
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
        self.adapters = AdapterStore.open(settings)
        self._bases = dict(self._local())

    async def entries(self) -> list[Entry]:
        """Agents first, then chat models, their active adapters and embedding models, the default ones ahead."""
        offered = [Entry(PREFIX + name, "agent", "lectern") for name in await self._offered()]
        adapted = [Entry(name, "chat", "lectern") for name in await asyncio.to_thread(self._adapted)]
        agents, chats, embedders = (
            [entry for entry in self._fixed.values() if entry.kind == kind] for kind in ("agent", "chat", "embedding")
        )
        return [*agents, *offered, *chats, *adapted, *embedders]

    async def responder(self, name: str) -> Responder:
        """What answers chat requests under that name.

        Raises:
            UnknownModel: nothing does.
            CallerError: it names an embedding model.
            Conflict: it names an adapter that is deactivated.
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
        return await self._once("chat", wanted, partial(self._load_chat, wanted))

    async def embedder(self, name: str) -> Embedder:
        """Raises: UnknownModel, or CallerError for a model that does not embed."""
        kind = await self._kind(name)
        if kind != "embedding":
            raise CallerError(f"{name!r} is no embedding model.", hint="GET /v1/models lists kinds.", field="model")
        from framework.models.embedders import load_embedder

        if name == self.models.embedder:
            return await self._once("embedding", name, lambda: self.library.embedder)
        return await self._once("embedding", name, lambda: load_embedder(name, self.models))

    async def base(self, name: str) -> Resolved:
        """A chat model that this installation offers and runs itself, so that it can have adapters.

        Raises:
            UnknownModel: there is no such model.
            CallerError: it runs elsewhere, or is none that adapters are for.
        """
        if await self._kind(name) != "chat" or name not in self._bases:
            raise CallerError(f"{name[:200]!r} is no chat model that adapters can be for.", field="base")
        return await asyncio.to_thread(Catalog(self.models).resolve, name)

    def base_name(self, base: str) -> str:
        """What requests call an adapter's base, which `base_id` names."""
        return next((name for name, known in self._bases.items() if known == base), base)

    def forget(self, name: str) -> None:
        """Keep a removed adapter's chat model no longer than the requests that run on it do."""
        self._loaded.pop(("chat", name), None)

    async def warm(self) -> None:
        """Load what is asked for by default, so that the first request does not wait for it.

        A model here is asked for a token, since its weights come with its first request; one elsewhere is not asked.
        """
        from framework.models.local_chat import LocalChat

        model = await self.chat()
        if isinstance(model, LocalChat):
            await complete(model, [user("Hello")], params=GenerationParams(max_tokens=1))
        await self.embedder(self.models.embedder)

    async def drain(self, seconds: float) -> None:
        """Let what the models that were loaded here still compute come to its end, for so long at most."""
        draining = [model.drain(seconds) for model in self._chats() if hasattr(model, "drain")]
        await asyncio.gather(*draining)

    def close(self) -> None:
        """Let go of the models that were loaded here."""
        for model in self._chats():
            if hasattr(model, "close"):
                model.close()

    def _chats(self) -> list[Any]:
        return [
            made.result()
            for (kind, _), made in self._loaded.items()
            if kind == "chat" and made.done() and not made.cancelled()
        ]

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
        base, _, adapter = name.rpartition(":")
        if base in self._bases:
            with suppress(NotFound):
                await asyncio.to_thread(self.adapters.get, adapter, self.library.tenant, self._bases[base])
                return "chat"
            self.forget(name)
        raise UnknownModel(name)

    def _adapted(self) -> list[str]:
        """The models that are a base with an active adapter."""
        known = self.adapters.list(self.library.tenant)
        return [f"{name}:{a.name}" for name, base in self._bases.items() for a in known if a.usable and a.base == base]

    def _load_chat(self, name: str) -> ChatModel:
        from framework.models.chat import load_chat

        return load_chat(name, self.models, settings=self.settings, tenant=self.library.tenant)

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

    def _local(self) -> Iterator[tuple[str, str]]:
        """The chat models that run in this process, and what their adapters call them."""
        for entry in self._fixed.values():
            given = self._chat is not None and entry.id == self.default
            if entry.kind == "chat" and not given and entry.id not in self.models.endpoints:
                with suppress(LecternError):  # a provider's name, or a model that can't be used: it has no adapters
                    yield entry.id, base_id(Catalog(self.models).card(entry.id))

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
