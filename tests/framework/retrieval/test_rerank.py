from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from framework.documents import Document
from framework.errors import CallerError
from framework.retrieval.config import SearchConfig
from framework.retrieval.memory import MemoryStore
from framework.retrieval.qdrant import EdgeStore
from framework.retrieval.rerank import rerank
from framework.retrieval.retriever import Retriever
from framework.retrieval.store import VectorStore
from framework.testing.fakes import HashEmbedder, memory_retriever
from indexers.library import Library

DOCUMENTS = [Document(f"d{i}", f"copper wire number{i}" + " and tin" * (i % 3), metadata={"row": i}) for i in range(60)]


class Longest:
    """A reranker that likes long texts."""

    name = "longest"
    languages: tuple[str, ...] = ()
    asked: Sequence[str] = ()

    def query_excess(self, query: str) -> int:
        return max(0, len(query.split()) - 5)

    def score(self, query: str, texts: Sequence[str]) -> NDArray[np.float32]:
        self.asked = list(texts)
        return np.array([len(text) for text in texts], np.float32)


def retriever(config: SearchConfig | None = None, reranker: Longest | None = None) -> Retriever:
    made = memory_retriever(DOCUMENTS, config=config or SearchConfig(rerank=True, first_stage_weight=0.0))
    model = reranker or Longest()
    return Retriever(
        made.store, made.corpus, made.embedder, made.tenant, made.collection, made.config, reranker=lambda: model
    )


scores = st.floats(-100, 100).map(lambda value: round(value, 3))


@given(st.lists(scores, min_size=1, max_size=30), st.data())
def test_reranking_orders_the_first_and_leaves_the_others_behind(before: list[float], data: st.DataObject) -> None:
    order = [(f"id{i:02}", score) for i, score in enumerate(sorted(before, reverse=True))]
    count = data.draw(st.integers(0, len(order)))
    model = {id: data.draw(scores) for id, _ in order[:count]}
    weight = data.draw(st.floats(0, 1))
    result = rerank(order, model, weight) if count else order
    assert {id for id, _ in result[:count]} == set(model)
    assert [id for id, _ in result[count:]] == [id for id, _ in order[count:]]
    assert all(a[1] >= b[1] for a, b in pairwise(result))


def test_the_share_of_the_first_stage_goes_from_nothing_to_all() -> None:
    order = [("a", 3.0), ("b", 2.0), ("c", 1.0), ("d", 0.5)]
    model = {"a": 0.0, "b": 1.0, "c": 2.0}
    assert [id for id, _ in rerank(order, model, 0.0)] == ["c", "b", "a", "d"]
    assert [id for id, _ in rerank(order, model, 1.0)] == ["a", "b", "c", "d"]
    assert rerank(order, model, 0.25)[0] == ("c", 0.75)


def test_equal_scores_go_by_id() -> None:
    assert [id for id, _ in rerank([("b", 1.0), ("a", 1.0)], {"a": 1.0, "b": 1.0}, 0.5)] == ["a", "b"]


async def test_a_search_lets_the_model_order_its_best_candidates() -> None:
    found = await retriever().search("copper wire and tin", k=5)
    assert all(hit.chunk.text.endswith("and tin and tin") for hit in found.hits)
    assert found.reranked == 20
    assert {"dense", "rerank"} <= set(found.hits[0].scores)
    assert found.hits[0].scores["rerank"] == len(found.hits[0].chunk.embedded_text)
    assert [hit.score for hit in found.hits] == sorted((hit.score for hit in found.hits), reverse=True)


async def test_hits_beyond_the_candidates_follow_without_a_score_of_the_model() -> None:
    config = SearchConfig(rerank=True, rerank_candidates=4)
    plain = await retriever(config).search("copper wire", k=10, rerank=False)
    found = await retriever(config).search("copper wire", k=10)
    assert [("rerank" in hit.scores) for hit in found.hits] == [True] * 4 + [False] * 6
    assert [hit.id for hit in found.hits[4:]] == [hit.id for hit in plain.hits[4:]]
    assert (found.reranked, plain.reranked) == (4, 0)


async def test_as_many_candidates_as_are_asked_for_are_read_from_a_small_pool() -> None:
    config = SearchConfig(rerank=True, rerank_candidates=50, pool=10, mode="lexical", k=2)
    assert (await retriever(config).search("copper wire")).reranked == 50


async def test_the_call_decides_before_the_configuration() -> None:
    model = Longest()
    await retriever(SearchConfig(), model).search("copper wire")
    assert not model.asked
    await retriever(SearchConfig(), model).search("copper wire", rerank=True)
    assert model.asked


async def test_the_model_reads_what_was_embedded() -> None:
    model = Longest()
    searched = retriever(reranker=model)
    found = await searched.search("copper wire", k=1)
    assert found.hits[0].chunk.embedded_text in model.asked


async def test_diversity_comes_after_reranking() -> None:
    found = await retriever().search("copper wire and tin", k=5, mmr=1.0)
    assert all(hit.chunk.text.endswith("and tin and tin") for hit in found.hits)
    assert {"rerank", "mmr"} <= set(found.hits[0].scores)


async def test_a_query_that_is_not_read_to_its_end_is_told() -> None:
    found = await retriever().search("copper wire number one two three four", k=1)
    assert found.notices == ("The query is 2 tokens longer than the reranker reads; its end was not compared.",)


async def test_a_model_that_does_not_know_the_language_is_left_out_with_a_notice() -> None:
    model = Longest()
    model.languages = ("en",)
    found = await retriever(reranker=model).search("медная проволока copper", k=3)
    assert found.reranked == 0
    assert found.notices == (
        "The reranker longest knows en and can't read Cyrillic script: the hits were not reranked.",
    )
    assert not model.asked


async def test_a_retriever_without_a_reranker_says_so() -> None:
    with pytest.raises(CallerError, match="without a reranker"):
        await memory_retriever(DOCUMENTS).search("copper", rerank=True)


async def test_every_store_gives_the_same_hits(tmp_path: Path) -> None:
    def ranked(store: VectorStore, home: Path) -> list[tuple[str, float]]:
        from framework.bridge import run_sync

        home.mkdir()
        with Library(home, store, HashEmbedder()) as library:
            library.index_documents(DOCUMENTS, "docs")
            config = SearchConfig(rerank=True, first_stage_weight=0.5)
            searched = library.retriever("docs", config)
            searched = Retriever(
                searched.store, searched.corpus, searched.embedder, "default", "docs", config, reranker=Longest
            )
            hits = run_sync(searched.search("copper wire tin", k=20)).hits
            return [(hit.id, round(hit.score, 5)) for hit in hits]

    import asyncio

    memory = await asyncio.to_thread(ranked, MemoryStore(), tmp_path / "a")
    edge = await asyncio.to_thread(ranked, EdgeStore(tmp_path / "store"), tmp_path / "b")
    assert memory == edge


def test_settings_out_of_range_are_refused() -> None:
    from framework.errors import ConfigError

    for change in ({"rerank_candidates": 0}, {"first_stage_weight": 1.5}):
        with pytest.raises(ConfigError, match=f"search.{next(iter(change))}"):
            replace(SearchConfig(), **change)
