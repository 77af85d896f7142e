"""A question in, ranked and checked hits out: embed, search both ways, fuse, check, rerank, diversify."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from framework.documents import Hit
from framework.errors import CallerError, Conflict
from framework.models.base import Embedder, Reranker, Vectors
from framework.retrieval.bm25 import VERSION, Analyzer
from framework.retrieval.config import MAX_K, MODES, Mode, SearchConfig
from framework.retrieval.filters import Filter
from framework.retrieval.fusion import Ranking, distribution_based_fusion, reciprocal_rank_fusion
from framework.retrieval.languages import unread_script
from framework.retrieval.mmr import maximal_marginal_relevance
from framework.retrieval.rerank import rerank as reranked
from framework.retrieval.store import Candidate, Corpus, Space, SparseVector, VectorStore

MAX_QUERY = 32_768
# A search that found too few live hits asks again for four times as many candidates, up to this many.
MAX_POOL = 25_600
GROWTH = 4


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search found, best first.

    Attributes:
        mode: how it really ranked; "lexical" where the embedder could not read a hybrid search's query.
        asked: the k that was asked for.
        shortfall: how many of them were not found, because nothing else matches the query and its filter.
        reranked: how many candidates were read by the reranker.
        notices: what the reader should know about this result, as sentences.
        seconds: time taken, embedding included.
    """

    hits: tuple[Hit, ...]
    mode: Mode
    asked: int
    shortfall: int
    notices: tuple[str, ...]
    seconds: float
    reranked: int = 0


@dataclass(frozen=True, slots=True)
class _Plan:
    """A checked request. `vector`, `terms` and `reranker` are there where they are used."""

    query: str
    mode: Mode
    k: int
    mmr: float | None
    reranker: Reranker | None
    filter: Filter | None
    vector: Vectors | None
    terms: SparseVector | None
    notices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Pool:
    """Candidates of one round, best first. `stages` holds, by its name, each stage's scores by id."""

    order: list[tuple[str, float]]
    stages: Mapping[str, Mapping[str, float]]
    vectors: Mapping[str, Vectors]
    exhausted: bool


@dataclass(frozen=True, slots=True)
class _Found:
    """Live hits of the last round by id, and the order that its pool has them in."""

    pool: _Pool
    live: Mapping[str, Hit]
    order: list[tuple[str, float]]
    notices: tuple[str, ...] = ()


class Retriever:
    """Searches one collection of one tenant.

    Args:
        reranker: loads the model that reranks, when it is first asked for; None: there is none.
    """

    def __init__(
        self,
        store: VectorStore,
        corpus: Corpus,
        embedder: Embedder,
        tenant: str,
        collection: str,
        config: SearchConfig | None = None,
        reranker: Callable[[], Reranker] | None = None,
    ) -> None:
        self.store = store
        self.corpus = corpus
        self.embedder = embedder
        self.tenant = tenant
        self.collection = collection
        self.config = config or SearchConfig()
        self._reranker = reranker
        self._analyzer: tuple[Space, Analyzer] | None = None

    async def search(
        self,
        query: str,
        *,
        k: int | None = None,
        mode: Mode | None = None,
        mmr: float | None = None,
        filter: Filter | None = None,
        rerank: bool | None = None,
    ) -> SearchResult:
        """The k best live chunks for the query; what is not given comes from the configuration.

        Raises:
            CallerError: an empty or overlong query, or an argument out of range.
            NotFound: no such collection.
            Conflict: the collection was made with another embedder or analyzer.
        """
        return await asyncio.to_thread(self._search, query, k, mode, mmr, filter, rerank)

    def _search(
        self,
        query: str,
        k: int | None,
        mode: Mode | None,
        mmr: float | None,
        filter: Filter | None,
        rerank: bool | None,
    ) -> SearchResult:
        started = time.perf_counter()
        plan = self._plan(query, k, mode, mmr, filter, rerank)
        found = self._rounds(plan)
        hits, read = self._rank(plan, found)
        notices = plan.notices + found.notices
        shortfall = plan.k - len(hits)
        if shortfall:
            asked = "the query" if plan.filter is None else "the query and the filter"
            notices += (f"{len(hits)} of {plan.k} results: nothing else matches {asked}.",)
        seconds = time.perf_counter() - started
        return SearchResult(tuple(hits), plan.mode, plan.k, shortfall, notices, seconds, read)

    def _plan(
        self,
        query: str,
        k: int | None,
        mode: Mode | None,
        mmr: float | None,
        filter: Filter | None,
        rerank: bool | None,
    ) -> _Plan:
        k = self.config.k if k is None else k
        mode = self.config.mode if mode is None else mode
        mmr = self.config.mmr if mmr is None else mmr
        _check_request(query, k, mode, mmr)
        space = self.store.space(self.tenant, self.collection)
        self._check_space(space, mode)
        mode, notices = self._readable(query, mode, space.language)
        vector = terms = None
        if mode != "lexical":
            notices += self._length_notice(query)
            vector = self.embedder.embed_query(query)
        if mode != "dense":
            terms = self._analyzer_for(space).query(query)
        reranker = None
        if self.config.rerank if rerank is None else rerank:
            reranker, more = self._reads(query, space.language)
            notices += more
        return _Plan(query, mode, k, mmr, reranker, filter, vector, terms, notices)

    def _reads(self, query: str, language: str) -> tuple[Reranker | None, tuple[str, ...]]:
        """The reranker, if it knows the languages of query and collection, and what the reader should know of it."""
        if self._reranker is None:
            raise CallerError("This retriever was made without a reranker.", field="rerank")
        reranker = self._reranker()
        problem = _unread(query, language, reranker.languages)
        if problem:
            known = f"The reranker {reranker.name} knows {', '.join(reranker.languages)} {problem}"
            return None, (f"{known}: the hits were not reranked.",)
        cut = reranker.query_excess(query)
        if cut:
            return reranker, (f"The query is {cut} tokens longer than the reranker reads; its end was not compared.",)
        return reranker, ()

    def _check_space(self, space: Space, mode: Mode) -> None:
        hint = f"Index it again with: lectern index PATH -c {self.collection} --rebuild"
        info = self.embedder.info
        if mode != "lexical" and (space.embedder, space.dimensions) != (info.id, info.dimensions):
            raise Conflict(
                f"The collection {self.collection!r} was embedded by {space.embedder}, "
                f"and {info.name} ({info.id}) can't search its vectors.",
                hint=hint,
                field="collection",
            )
        if mode != "dense" and space.analyzer != VERSION:
            raise Conflict(
                f"The collection {self.collection!r} has terms of analyzer version {space.analyzer}, not {VERSION}.",
                hint=hint,
                field="collection",
            )

    def _readable(self, query: str, mode: Mode, language: str) -> tuple[Mode, tuple[str, ...]]:
        """The mode that the embedder's languages allow: a hybrid search goes on without vectors that mean little."""
        info = self.embedder.info
        problem = "" if mode == "lexical" else _unread(query, language, info.languages)
        if not problem:
            return mode, ()
        known = f"The embedder {info.name} knows {', '.join(info.languages)} {problem}"
        if mode == "dense":
            return mode, (f"{known}: lexical search would serve better.",)
        return "lexical", (f"{known}: only the lexical ranking was used.",)

    def _length_notice(self, query: str) -> tuple[str, ...]:
        limit = self.embedder.info.max_tokens
        cut = self.embedder.count_tokens([query])[0] - limit
        if cut <= 0:
            return ()
        return (
            f"The query is {cut} tokens longer than the {limit} that the embedder reads; its end was not embedded.",
        )

    def _analyzer_for(self, space: Space) -> Analyzer:
        """One analyzer for as long as the collection stays the same: stemmers remember words."""
        if self._analyzer is None or self._analyzer[0] != space:
            self._analyzer = (space, Analyzer(space.language, space.average_length))
        return self._analyzer[1]

    def _rounds(self, plan: _Plan) -> _Found:
        """Candidates until k of them are live: points may be stale while a document is being replaced."""
        size = max(self.config.pool, 2 * plan.k, self.config.rerank_candidates if plan.reranker else 0)
        while True:
            pool = self._candidates(plan, size)
            found = self._live(plan, pool)
            if len(found.live) >= plan.k or pool.exhausted:
                return found
            if size * GROWTH > MAX_POOL:
                notice = f"The search stopped after {size} candidates, too few of which are live."
                return replace(found, notices=(notice,))
            size *= GROWTH

    def _candidates(self, plan: _Plan, size: int) -> _Pool:
        found: dict[str, list[Candidate]] = {}
        arguments = (size, plan.filter, plan.mmr is not None)
        if plan.vector is not None:
            found["dense"] = self.store.dense(self.tenant, self.collection, plan.vector, *arguments)
        if plan.terms is not None and plan.terms.indices:
            found["lexical"] = self.store.lexical(self.tenant, self.collection, plan.terms, *arguments)
        stages = {stage: {id: score for id, score, _ in candidates} for stage, candidates in found.items()}
        vectors = {id: dense for candidates in found.values() for id, _, dense in candidates if dense is not None}
        exhausted = all(len(candidates) < size for candidates in found.values())
        order = self._fuse(plan, stages)
        if plan.mode == "hybrid":
            stages[self.config.fusion] = dict(order)
        return _Pool(order, stages, vectors, exhausted)

    def _fuse(self, plan: _Plan, stages: Mapping[str, Mapping[str, float]]) -> list[tuple[str, float]]:
        if plan.mode != "hybrid":
            return [scored for stage in stages.values() for scored in stage.items()]
        weights = {"dense": self.config.dense_weight, "lexical": self.config.lexical_weight}
        rankings = [Ranking(list(scores.items()), weights[stage]) for stage, scores in stages.items()]
        if self.config.fusion == "rrf":
            return reciprocal_rank_fusion(rankings, self.config.rrf_k)
        return distribution_based_fusion(rankings)

    def _live(self, plan: _Plan, pool: _Pool) -> _Found:
        """The hits of this round. All come from one reading of the corpus, so never from two versions of a document."""
        ids = [id for id, _ in pool.order]
        first = max(2 * plan.k, self.config.rerank_candidates + plan.k if plan.reranker else 0)
        if plan.mmr is not None:
            first = len(ids)
        live = self.corpus.hits(self.tenant, self.collection, ids[:first])
        if len(live) < plan.k and first < len(ids):
            live = self.corpus.hits(self.tenant, self.collection, ids)
        return _Found(pool, live, [(id, score) for id, score in pool.order if id in live])

    def _rank(self, plan: _Plan, found: _Found) -> tuple[list[Hit], int]:
        """The k hits, and how many candidates were reranked for them."""
        order, stages = found.order, dict(found.pool.stages)
        read = order[: self.config.rerank_candidates] if plan.reranker else []
        if plan.reranker and read:
            texts = [found.live[id].chunk.embedded_text for id, _ in read]
            scores = plan.reranker.score(plan.query, texts).tolist()
            stages["rerank"] = dict(zip((id for id, _ in read), scores, strict=True))
            order = reranked(order, stages["rerank"], self.config.first_stage_weight)
        if plan.mmr is not None and order:
            order = _diversify(plan, order, found.pool, plan.mode != "dense" or bool(read))
            stages["mmr"] = dict(order)
        hits = [
            replace(
                found.live[id],
                score=score,
                scores={name: scores[id] for name, scores in stages.items() if id in scores},
            )
            for id, score in order[: plan.k]
        ]
        return hits, len(read)


def _unread(query: str, language: str, known: Sequence[str]) -> str:
    """Why a model that knows these languages can't read a query or a collection; empty: it can."""
    if not known:
        return ""
    script = unread_script(query, known)
    if script is not None:
        return f"and can't read {script} script"
    return f"and the collection is in {language}" if language and language not in known else ""


def _diversify(plan: _Plan, order: Sequence[tuple[str, float]], pool: _Pool, scaled: bool) -> list[tuple[str, float]]:
    """MMR over the live pool.

    Relevance is the ranking's own score, so that 1 leaves every mode's order as it is. A cosine enters unchanged;
    any other score is scaled linearly onto 0 to 1, a cosine's range.
    """
    assert plan.mmr is not None
    relevance = np.array([score for _, score in order])
    if scaled:
        spread = float(np.ptp(relevance)) or 1.0
        relevance = (relevance - relevance.min()) / spread
    vectors = np.stack([pool.vectors[id] for id, _ in order])
    picked = maximal_marginal_relevance(relevance.tolist(), vectors, plan.mmr, plan.k)
    return [(order[position][0], score) for position, score in picked]


def _check_request(query: str, k: int, mode: str, mmr: float | None) -> None:
    if not query.strip():
        raise CallerError("The query is empty.", field="query")
    if len(query) > MAX_QUERY:
        raise CallerError(f"The query has {len(query)} characters; {MAX_QUERY} are allowed.", field="query")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_K:
        raise CallerError(f"k must be between 1 and {MAX_K}, got {k!r}.", field="k")
    if mode not in MODES:
        raise CallerError(f"mode must be one of {', '.join(MODES)}, got {mode!r}.", field="mode")
    if mmr is not None and not (math.isfinite(mmr) and 0 <= mmr <= 1):
        raise CallerError(f"mmr must be between 0 and 1, got {mmr!r}.", field="mmr")
