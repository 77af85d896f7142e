"""Retrieval as a tool like any other: the model asks, numbered passages come back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from framework.documents import Hit
from framework.errors import CallerError
from framework.messages import ToolSpec
from tools.base import ToolContext, ToolResult
from tools.decorator import check_name

DESCRIPTION = "Search the documents. Returns numbered passages to answer from; cite them by number, like [1]."
TIMEOUT = 30.0


class Found(Protocol):
    """What a search tells: hits, best first, and a sentence for each thing that was cut or skipped."""

    @property
    def hits(self) -> Sequence[Hit]: ...

    @property
    def notices(self) -> Sequence[str]: ...


class Searcher(Protocol):
    """What can be searched; `framework.retrieval.retriever.Retriever` is one."""

    async def search(self, query: str, *, k: int | None = None) -> Found: ...


class RetrieveTool:
    """Searches one collection. `ToolResult.hits[n - 1]` is the passage numbered [n].

    Args:
        k: passages to return; None: as many as the retriever is set to.
    """

    def __init__(
        self,
        retriever: Searcher,
        name: str = "search_docs",
        description: str = DESCRIPTION,
        k: int | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        if k is not None and k < 1:
            raise CallerError(f"k must be 1 or more, got {k}.", field="k")
        query = {"type": "string", "minLength": 1, "description": "What to look for, in plain words."}
        parameters = {
            "type": "object",
            "properties": {"query": query},
            "required": ["query"],
            "additionalProperties": False,
        }
        self.spec = ToolSpec(check_name(name), description, parameters)
        self.timeout = timeout
        self._retriever = retriever
        self._k = k

    def __repr__(self) -> str:
        return f"<tool {self.spec.name}>"

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        query = arguments["query"]
        found = await self._retriever.search(query, k=self._k)
        hits = tuple(found.hits)
        lines = [_summary(query, len(hits)), *(f"Note: {notice}" for notice in found.notices)]
        text = "\n".join([*lines, *(f"\n{passage(number, hit)}" for number, hit in enumerate(hits, 1))])
        return ToolResult(text, hits=hits, data={"notices": tuple(found.notices)})


def passage(number: int, hit: Hit) -> str:
    """A hit as the model reads it, under the number that it is cited by."""
    return f"[{number}] {_origin(hit)}\n{hit.chunk.text.strip()}"


def _summary(query: str, count: int) -> str:
    if not count:
        return f"Nothing was found for {query!r}."
    return f"{count} {'passage' if count == 1 else 'passages'} found for {query!r}:"


def _origin(hit: Hit) -> str:
    """Title, headings and source on one line, each once."""
    headings = [part for part in hit.chunk.heading_path if part != hit.title]
    place = " > ".join(part for part in (hit.title, *headings) if part)
    page = f", page {hit.chunk.page}" if hit.chunk.page is not None else ""
    if not hit.source or hit.source == place:
        return f"{place}{page}"
    return f"{place} ({hit.source}{page})" if place else f"{hit.source}{page}"
