"""A quotation as an answer: its sentences, numbered, each with its checked citation."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from agents.citations import citation
from agents.deps import Deps
from agents.quoting import quote
from agents.state import Passage, Run
from framework.documents import Citation
from framework.models.base import Embedder


async def quote_passages(run: Run, deps: Deps) -> Run:
    """The run with text and citations, both empty where no passage answers."""
    if not run.passages:
        return run
    embedder = await asyncio.to_thread(_embedder, run.passages, deps)
    ranked = _best_first(run.passages)
    by_hit = {passage.hit.id: passage for passage in run.passages}
    quotation = await quote(run.query or run.question, [passage.hit for passage in ranked], embedder)
    lines: list[str] = []
    citations: list[Citation] = []
    for sentence in quotation.sentences:
        passage = by_hit[sentence.hit.id]
        start = passage.hit.chunk.start
        span = (sentence.start - start, sentence.end - start)
        found = await citation(len(citations) + 1, passage, span, deps.shelves)
        if found is None:
            run = run.noting(f"A sentence was left out: {passage.hit.chunk.document_id} has changed since it was read.")
            continue
        lines.append(f"{' '.join(found.quote.split())} [{found.number}]")
        citations.append(found)
    return replace(run, text="\n".join(lines), citations=tuple(citations))


def _best_first(passages: tuple[Passage, ...]) -> list[Passage]:
    """Each search's passages in its order, the searches taking turns: their scores can't be compared."""
    ranks: Counter[str] = Counter()
    ranked = []
    for passage in passages:
        ranks[passage.tool] += 1
        ranked.append((ranks[passage.tool], passage.number, passage))
    return [passage for _, _, passage in sorted(ranked, key=lambda item: item[:2])]


def _embedder(passages: Sequence[Passage], deps: Deps) -> Embedder:
    """The one that the collection was made with, or the default for a search of another kind."""
    shelf = deps.shelves.get(passages[0].tool)
    own = shelf.embedder() if shelf is not None else None
    if own is not None:
        return own
    from framework.models.embedders import load_embedder

    return load_embedder()
