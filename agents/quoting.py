"""Quoting: the sentences of the found passages that answer a question, or none.

Small models choose better than they write. Each sentence gets a few features, a linear combination of them orders the
sentences, and a second one says how sure it is that any of them answers.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agents.sentences import split_sentences
from framework.documents import Hit
from framework.models.base import ChatModel, Embedder
from framework.retrieval.bm25 import Analyzer, inverse_document_frequency

WEIGHTS = {"cosine": 6.0, "overlap": 2.0, "rank": 0.5}
BIAS = -4.0


@dataclass(frozen=True, slots=True)
class QuotingConfig:
    """How to quote.

    Attributes:
        hits: passages that are read, best first.
        sentences: most sentences to quote.
        threshold: least confidence to answer with; below it the question is declined.
        language: of the documents, for stemming (ISO 639-1).
    """

    hits: int = 8
    sentences: int = 3
    threshold: float = 0.5
    language: str = "en"


@dataclass(frozen=True, slots=True)
class Quoted:
    """A quotation: `text` stands at `start:end` of the document version that `hit` names."""

    hit: Hit
    start: int
    end: int
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Quotation:
    """What the passages say to the question.

    Attributes:
        closest: the best quotations in order of reading, also when they do not suffice.
        confidence: estimated probability that they answer, 0 to 1.
        declined: the confidence is below the threshold, or there was nothing to quote.
    """

    closest: tuple[Quoted, ...]
    confidence: float
    declined: bool

    @property
    def sentences(self) -> tuple[Quoted, ...]:
        """The quotations to answer with; none if declined."""
        return () if self.declined else self.closest


async def quote(
    question: str,
    hits: Sequence[Hit],
    embedder: Embedder,
    model: ChatModel | None = None,
    config: QuotingConfig = QuotingConfig(),
) -> Quotation:
    """The one to `config.sentences` sentences that answer the question best, adjacent ones merged, best first.

    `model` may choose among a shortlist; None: the scores alone decide.
    """
    return await asyncio.to_thread(_quote, question, hits, embedder, config)


def _quote(question: str, hits: Sequence[Hit], embedder: Embedder, config: QuotingConfig) -> Quotation:
    found: dict[tuple[str, int, int], tuple[int, Quoted]] = {}
    for rank, hit in enumerate(hits[: config.hits]):
        for s in split_sentences(hit.chunk.text):
            start, end = hit.chunk.start + s.start, hit.chunk.start + s.end
            text = hit.chunk.text[s.start : s.end]
            found.setdefault((hit.chunk.document_id, start, end), (rank, Quoted(hit, start, end, text, 0.0)))
    if not found:
        return Quotation((), 0.0, True)
    ranks, candidates = zip(*found.values(), strict=True)
    texts = [candidate.text for candidate in candidates]
    cosine = embedder.embed_documents(texts) @ embedder.embed_query(question)
    overlap = _overlap(question, texts, Analyzer(config.language))
    scores = np.array(WEIGHTS["cosine"] * cosine + WEIGHTS["overlap"] * overlap + BIAS)
    scores += [WEIGHTS["rank"] / (1 + rank) for rank in ranks]
    order = np.argsort(-scores, kind="stable")[: config.sentences]
    best = float(scores[order[0]])
    confidence = 1 / (1 + math.exp(-best))
    picked = [i for i in order if scores[i] >= best - 1.0]
    quoted = (candidates[i] for i in picked)
    closest = tuple(
        Quoted(q.hit, q.start, q.end, q.text, float(scores[i])) for i, q in zip(picked, quoted, strict=True)
    )
    return Quotation(closest, confidence, confidence < config.threshold)


def _overlap(question: str, texts: Sequence[str], analyzer: Analyzer) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Share of the question's IDF weight that each text holds."""
    bags = [set(analyzer.query(text).indices) for text in texts]
    holders = Counter(term for bag in bags for term in bag)
    asked = {t: inverse_document_frequency(len(bags), holders[t]) for t in analyzer.query(question).indices}
    total = sum(asked.values()) or 1.0
    return np.array([sum(asked[t] for t in bag & asked.keys()) / total for bag in bags])
