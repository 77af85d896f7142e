"""A small collection whose documents can change, and agents that play a script on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from agents import Agent
from framework.config import Settings
from framework.documents import Chunk, Document, Hit
from framework.errors import NotFound
from framework.testing.scripted import ScriptedChat, Turn

TEXTS = {
    "refunds.md": "Refunds are paid within five days. A refund needs the receipt.\n\nGift cards are not refunded.",
    "shipping.md": "Parcels leave the warehouse on weekdays. Shipping to Norway takes nine days.",
}


@dataclass(frozen=True)
class Found:
    hits: tuple[Hit, ...]
    notices: tuple[str, ...] = ()


@dataclass
class Notes:
    """A collection in memory: each paragraph a chunk, found by shared words. It is its own corpus."""

    texts: dict[str, str] = field(default_factory=lambda: dict(TEXTS))
    tenant: str = "default"
    collection: str = "notes"
    embedder: Any = None
    notices: tuple[str, ...] = ()
    queries: list[str] = field(default_factory=list)

    @property
    def corpus(self) -> Notes:
        return self

    def document(self, tenant: str, collection: str, document_id: str, version: str | None = None) -> Document:
        text = self.texts.get(document_id)
        found = Document(document_id, text or "", title=document_id.removesuffix(".md").title())
        if (
            text is None
            or (tenant, collection) != (self.tenant, self.collection)
            or version not in (None, found.version)
        ):
            raise NotFound(f"no {document_id}")
        return found

    def hits(self, tenant: str, collection: str, ids: Sequence[str]) -> dict[str, Hit]:
        return {hit.id: hit for hit in self._chunks() if hit.id in ids}

    async def search(self, query: str, *, k: int | None = None) -> Found:
        self.queries.append(query)
        words = set(query.lower().strip("?").split())
        scored = [replace(hit, score=float(len(words & set(hit.chunk.text.lower().split())))) for hit in self._chunks()]
        best = sorted((hit for hit in scored if hit.score), key=lambda hit: -hit.score)
        return Found(tuple(best[: k or 8]), self.notices)

    def _chunks(self) -> list[Hit]:
        found = []
        for name, text in self.texts.items():
            start = 0
            for ordinal, part in enumerate(text.split("\n\n")):
                chunk = Chunk(name, part, start, start + len(part), ordinal)
                version = self.document(self.tenant, self.collection, name).version
                found.append(Hit(f"{name}-{ordinal}", chunk, version, 0.0, title=name.removesuffix(".md").title()))
                start += len(part) + 2
        return found


@pytest.fixture(scope="session")
def collection() -> type[Notes]:
    """To make others of: `collection({"a.md": "text"})`."""
    return Notes


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def scripted(settings: Settings) -> Callable[..., tuple[Agent, ScriptedChat]]:
    """An agent with a script, in a temporary home: `agent, model = scripted([turns], tools=[...], ...)`."""

    def build(turns: Sequence[Turn], **options: Any) -> tuple[Agent, ScriptedChat]:
        model = ScriptedChat(turns)
        return Agent(model=model, **{"settings": settings, "mode": "write", **options}), model

    return build
