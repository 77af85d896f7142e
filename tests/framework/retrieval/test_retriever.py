from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from framework.documents import Document, Hit
from framework.errors import CallerError, Conflict, NotFound
from framework.retrieval.config import SearchConfig
from framework.retrieval.filters import Eq
from framework.retrieval.retriever import Retriever
from framework.retrieval.store import Candidate
from framework.testing.fakes import HashEmbedder, MemoryCorpus, memory_retriever

PETS = Document(
    "pets", "Cats sleep on mats.\n\nDogs chase cats.\n\nDogs chase cats.", "Pets", metadata={"kind": "animal"}
)
TOOLS = Document("tools", "A hammer drives nails.\n\nA saw cuts wood.", "Tools", metadata={"kind": "object"})


def many(count: int) -> list[Document]:
    return [Document(f"d{i}", f"copper number{i}", metadata={"row": i}) for i in range(count)]


def texts(hits: Sequence[Hit]) -> list[str]:
    return [hit.chunk.text for hit in hits]


async def test_hits_carry_their_place_and_every_stage_of_their_score() -> None:
    result = await memory_retriever([PETS, TOOLS]).search("which dogs chase cats", k=2)
    first = result.hits[0]
    assert PETS.text[first.chunk.start : first.chunk.end] == first.chunk.text == "Dogs chase cats."
    assert (first.title, first.version, first.metadata) == ("Pets", PETS.version, {"kind": "animal"})
    assert set(first.scores) == {"dense", "lexical", "dbsf"}
    assert first.score == first.scores["dbsf"] >= result.hits[1].score
    assert (result.mode, result.asked, result.shortfall, result.notices) == ("hybrid", 2, 0, ())
    assert result.seconds > 0


async def test_ranks_alone_can_be_fused_instead_of_scores() -> None:
    retriever = memory_retriever([PETS, TOOLS], config=SearchConfig(fusion="rrf", rrf_k=10))
    [hit] = (await retriever.search("saw wood", k=1)).hits
    assert hit.scores["rrf"] == hit.score == 2 / 11


@pytest.mark.parametrize("mode", ["dense", "lexical"])
async def test_a_single_ranking_scores_by_itself(mode: Any) -> None:
    result = await memory_retriever([PETS, TOOLS]).search("saw wood", k=1, mode=mode)
    assert texts(result.hits) == ["A saw cuts wood."]
    assert dict(result.hits[0].scores) == {mode: result.hits[0].score}
    assert result.mode == mode


async def test_equal_paragraphs_are_separate_hits_in_a_stable_order() -> None:
    retriever = memory_retriever([PETS, TOOLS])
    hits = (await retriever.search("dogs", k=2)).hits
    assert texts(hits) == ["Dogs chase cats."] * 2
    assert hits[0].id < hits[1].id
    assert hits[0].chunk.start != hits[1].chunk.start


async def test_a_filter_is_applied_before_ranking() -> None:
    result = await memory_retriever(many(400), config=SearchConfig(pool=10)).search("copper", filter=Eq("row", 399))
    assert [hit.document_id for hit in (h.chunk for h in result.hits)] == ["d399"]
    assert result.shortfall == 7
    assert result.notices == ("1 of 8 results: nothing else matches the query and the filter.",)


async def test_a_short_answer_says_so() -> None:
    result = await memory_retriever([TOOLS]).search("hammer", k=5)
    assert (len(result.hits), result.shortfall) == (2, 3)
    assert result.notices == ("2 of 5 results: nothing else matches the query.",)


async def test_stale_points_are_replaced_by_further_candidates() -> None:
    retriever = memory_retriever(many(300), config=SearchConfig(pool=10, mode="dense"))
    before = (await retriever.search("copper number7", k=300)).hits
    live = retriever.corpus.live["default", "docs"]  # type: ignore[attr-defined]
    for hit in before[:200]:
        del live[hit.id]
    after = await retriever.search("copper number7", k=8)
    assert [hit.id for hit in after.hits] == [hit.id for hit in before[200:208]]
    assert after.shortfall == 0


async def test_a_pool_without_end_of_stale_points_ends_the_search_with_a_notice() -> None:
    retriever = memory_retriever([PETS])
    stale = [Candidate(f"{i}", 1 / (i + 1)) for i in range(50_000)]
    asked: list[int] = []

    class Stale(type(retriever.store)):  # type: ignore[misc]
        def dense(self, tenant: str, collection: str, vector: object, n: int, *rest: object) -> list[Candidate]:
            asked.append(n)
            return stale[:n]

    retriever.store.__class__ = Stale
    result = await retriever.search("dogs", k=3, mode="dense")
    assert (result.hits, result.shortfall) == ((), 3)
    assert any("25600 candidates" in notice for notice in result.notices)
    assert asked == [100, 400, 1600, 6400, 25_600]


async def test_hits_are_read_from_one_state_of_the_corpus() -> None:
    """A document that changes between two readings must not show chunks of both versions."""
    retriever = memory_retriever(many(40), config=SearchConfig(pool=40, mode="dense"))

    class Changing(MemoryCorpus):
        readings = 0

        def hits(self, tenant: str, collection: str, ids: Sequence[str]) -> dict[str, Hit]:
            self.readings += 1
            found = super().hits(tenant, collection, ids)
            kept = list(found)[: 2 if self.readings == 1 else None]
            return {id: replace(found[id], version=f"v{self.readings}") for id in kept}

    corpus = Changing()
    corpus.__dict__.update(retriever.corpus.__dict__)
    retriever.corpus = corpus
    result = await retriever.search("copper", k=8)
    assert {hit.version for hit in result.hits} == {"v2"}
    assert len(result.hits) == 8


async def test_mmr_passes_over_copies() -> None:
    retriever = memory_retriever([PETS, TOOLS])
    plain = await retriever.search("dogs chase cats", k=2)
    diverse = await retriever.search("dogs chase cats", k=2, mmr=0.3)
    assert len(set(texts(plain.hits))) == 1
    assert len(set(texts(diverse.hits))) == 2
    assert all(hit.score == hit.scores["mmr"] for hit in diverse.hits)


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
async def test_mmr_of_one_keeps_the_order_of_every_mode(mode: Any) -> None:
    retriever = memory_retriever([*many(50), PETS, TOOLS])
    plain = await retriever.search("copper number7 cats", k=20, mode=mode)
    same = await retriever.search("copper number7 cats", k=20, mode=mode, mmr=1.0)
    assert [hit.id for hit in same.hits] == [hit.id for hit in plain.hits]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"query": ""}, "query"),
        ({"query": " \n"}, "query"),
        ({"query": "x" * 40_000}, "query"),
        ({"k": 0}, "k"),
        ({"k": 1001}, "k"),
        ({"k": 2.5}, "k"),
        ({"k": True}, "k"),
        ({"mode": "fuzzy"}, "mode"),
        ({"mmr": math.nan}, "mmr"),
        ({"mmr": -0.1}, "mmr"),
        ({"mmr": 1.1}, "mmr"),
    ],
)
async def test_a_wrong_argument_is_named(arguments: Mapping[str, Any], field: str) -> None:
    with pytest.raises(CallerError) as error:
        await memory_retriever([PETS]).search(**{"query": "dogs", **arguments})
    assert error.value.field == field


async def test_a_query_without_words_finds_by_vector_alone() -> None:
    result = await memory_retriever([PETS]).search("?!", k=1)
    assert set(result.hits[0].scores) == {"dense", "dbsf"}
    empty = await memory_retriever([PETS]).search("?!", k=1, mode="lexical")
    assert (empty.hits, empty.shortfall) == ((), 1)


async def test_another_embedder_is_refused_with_the_command_that_helps() -> None:
    retriever = memory_retriever([PETS])
    other = Retriever(retriever.store, retriever.corpus, HashEmbedder(48), "default", "docs")
    for mode in ("hybrid", "dense"):
        with pytest.raises(Conflict, match="lectern index PATH -c docs --rebuild"):
            await other.search("dogs", mode=mode)
    assert (await other.search("dogs", mode="lexical")).hits


async def test_terms_of_another_analyzer_are_refused() -> None:
    retriever = memory_retriever([PETS])
    space = retriever.store.space("default", "docs")
    retriever.store.create("default", "old", replace(space, analyzer=space.analyzer + 1))
    old = Retriever(retriever.store, retriever.corpus, retriever.embedder, "default", "old")
    with pytest.raises(Conflict, match="analyzer"):
        await old.search("dogs")
    assert (await old.search("dogs", mode="dense")).hits == ()


async def test_another_tenants_collection_is_not_found() -> None:
    retriever = memory_retriever([PETS])
    other = Retriever(retriever.store, retriever.corpus, retriever.embedder, "globex", "docs")
    with pytest.raises(NotFound):
        await other.search("dogs")


async def test_a_script_that_the_embedder_cannot_read_is_searched_by_words_alone() -> None:
    cats = Document("ru", "Кошки спят днём.\n\nСобаки лают.")
    retriever = memory_retriever([cats], HashEmbedder(languages=("en",)), language="ru")
    result = await retriever.search("кошка", k=1)
    assert texts(result.hits) == ["Кошки спят днём."]
    assert (result.mode, set(result.hits[0].scores)) == ("lexical", {"lexical"})
    assert "can't read Cyrillic" in result.notices[0]
    asked = await retriever.search("кошка", k=1, mode="dense")
    assert asked.mode == "dense"
    assert "lexical search would serve better" in asked.notices[0]


async def test_a_collection_in_a_language_the_embedder_lacks_is_searched_by_words_alone() -> None:
    """Measured on German and Spanish questions: an English embedder's ranking pulls the fused one down."""
    retriever = memory_retriever([PETS], HashEmbedder(languages=("en",)), language="de")
    result = await retriever.search("dogs", k=1)
    assert result.mode == "lexical"
    assert result.notices == (
        "The embedder hash knows en and the collection is in de: only the lexical ranking was used.",
    )
    multilingual = memory_retriever([PETS], HashEmbedder(languages=("en", "de")), language="de")
    assert (await multilingual.search("dogs", k=1)).mode == "hybrid"


async def test_a_query_longer_than_the_embedder_reads_says_what_was_cut() -> None:
    retriever = memory_retriever([PETS], HashEmbedder(max_tokens=10))
    result = await retriever.search("dogs " * 20, k=1)
    assert result.notices[0].startswith("The query is 12 tokens longer than the 10")
    assert (await retriever.search("dogs", k=1)).notices == ()


@pytest.mark.parametrize(
    ("config", "mode"),
    [(SearchConfig(dense_weight=0.0), "lexical"), (SearchConfig(lexical_weight=0.0), "dense")],
    ids=["no dense", "no lexical"],
)
async def test_a_weight_of_zero_leaves_the_other_rankings_order(config: SearchConfig, mode: Any) -> None:
    retriever = memory_retriever([*many(20), PETS, TOOLS], config=config)
    fused = await retriever.search("copper cats saw number3", k=10)
    single = await retriever.search("copper cats saw number3", k=10, mode=mode)
    assert [hit.id for hit in fused.hits] == [hit.id for hit in single.hits]
