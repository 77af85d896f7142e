"""What every vector store must do, as tests. A store's author subclasses `StoreContract` and overrides one fixture.

class TestMyStore(StoreContract):
    @pytest.fixture
    def store(self) -> MyStore:
        return MyStore(...)
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from framework.documents import Scalar
from framework.errors import CallerError, Conflict, NotFound
from framework.models.base import Vectors
from framework.retrieval.bm25 import Analyzer, inverse_document_frequency
from framework.retrieval.filters import All, AnyOf, Eq, Filter, In, Not, Range, matches
from framework.retrieval.memory import MemoryStore
from framework.retrieval.store import Candidate, Point, Space, SparseVector, VectorStore
from framework.testing.fakes import HashEmbedder

HERE = ("acme", "docs")
EMBEDDER = HashEmbedder(dimensions=16)
SPACE = Space(EMBEDDER.info.id, 16)
ANALYZER = Analyzer(SPACE.language, SPACE.average_length)
WORDS = ["river", "stone", "bridge", "lantern", "copper", "meadow", "winter", "harbour", "signal", "orchard", "velvet"]
NO_TERMS = SparseVector((), ())


def identity(number: int) -> str:
    return str(uuid.UUID(int=number))


def make_point(number: int, text: str, **payload: Scalar) -> Point:
    return Point(identity(number), EMBEDDER.embed_query(text), ANALYZER.document(text), payload)


def some_points(count: int = 200) -> list[Point]:
    """Points with texts of a few words each, some of them equal, and a payload of every type."""
    random = np.random.default_rng(7)
    texts = [" ".join(random.choice(WORDS, size=random.integers(1, 6))) for _ in range(count)]
    return [
        make_point(i, text, row=i, even=i % 2 == 0, group=f"g{i % 10}", share=i / 8) for i, text in enumerate(texts)
    ]


def found(candidates: Sequence[Candidate]) -> list[str]:
    return [candidate.id for candidate in candidates]


def assert_same(actual: Sequence[Candidate], expected: Sequence[Candidate]) -> None:
    assert found(actual) == found(expected)
    assert [c.score for c in actual] == pytest.approx([c.score for c in expected], abs=3e-5)


class StoreContract:
    """The behaviour that `VectorStore` promises, with `MemoryStore` as the measure of every ranking."""

    @pytest.fixture
    def store(self) -> VectorStore:
        """The store under test, empty; override it."""
        raise NotImplementedError

    @pytest.fixture
    def filled(self, store: VectorStore) -> VectorStore:
        store.create(*HERE, SPACE)
        store.upsert(*HERE, some_points())
        return store

    @pytest.fixture
    def reference(self) -> MemoryStore:
        reference = MemoryStore()
        reference.create(*HERE, SPACE)
        reference.upsert(*HERE, some_points())
        return reference

    # Rankings

    @pytest.mark.parametrize("n", [1, 7, 50, 500])
    def test_dense_ranking_equals_the_reference(self, filled: VectorStore, reference: MemoryStore, n: int) -> None:
        for text in ("winter harbour", "copper", "a word of no document"):
            query = EMBEDDER.embed_query(text)
            assert_same(filled.dense(*HERE, query, n), reference.dense(*HERE, query, n))

    @pytest.mark.parametrize("n", [1, 7, 50, 500])
    def test_lexical_ranking_equals_the_reference(self, filled: VectorStore, reference: MemoryStore, n: int) -> None:
        for text in ("winter harbour", "copper copper velvet", "stone"):
            terms = ANALYZER.query(text)
            assert_same(filled.lexical(*HERE, terms, n), reference.lexical(*HERE, terms, n))

    @pytest.mark.parametrize(
        "filter",
        [
            Eq("group", "g3"),
            Eq("even", True),
            Eq("row", 1),
            Eq("row", 1.0),
            Eq("row", True),
            Eq("even", 1),
            Eq("nowhere", "x"),
            In("group", ("g1", "g2")),
            In("group", ()),
            Range("row", 10, 20),
            Range("share", at_least=20.125),
            Range("even", 0, 1),
            Range("group", 0),
            Range("row"),
            Not(Eq("group", "g3")),
            Not(Range("nowhere", 1)),
            All(()),
            AnyOf(()),
            All((Eq("even", False), Not(In("group", ("g1", "g3"))), Range("row", at_most=50))),
            AnyOf((Eq("row", 5), Range("row", 190), All((Eq("group", "g0"), Eq("even", True))))),
        ],
        ids=repr,
    )
    def test_a_filter_passes_what_it_means_and_nothing_else(self, filled: VectorStore, filter: Filter) -> None:
        expected = {point.id for point in some_points() if matches(filter, point.payload)}
        dense = filled.dense(*HERE, EMBEDDER.embed_query("stone"), 500, filter)
        assert set(found(dense)) == expected
        lexical = filled.lexical(*HERE, ANALYZER.query(" ".join(WORDS)), 500, filter)
        assert set(found(lexical)) == expected

    def test_a_filter_that_keeps_few_points_still_fills_the_answer(self, filled: VectorStore) -> None:
        assert len(filled.dense(*HERE, EMBEDDER.embed_query("stone"), 20, Eq("group", "g3"))) == 20

    def test_a_filter_leaves_the_scores_as_they_are(self, filled: VectorStore) -> None:
        terms = ANALYZER.query("stone bridge")
        everything = {c.id: c.score for c in filled.lexical(*HERE, terms, 500)}
        some = filled.lexical(*HERE, terms, 500, Eq("group", "g3"))
        assert some
        assert all(c.score == everything[c.id] for c in some)

    def test_equal_scores_are_ordered_by_id_at_the_cut_too(self, store: VectorStore) -> None:
        store.create(*HERE, SPACE)
        store.upsert(*HERE, [make_point(number, "copper bridge") for number in reversed(range(100))])
        expected = [identity(number) for number in range(5)]
        assert found(store.dense(*HERE, EMBEDDER.embed_query("copper"), 5)) == expected
        assert found(store.lexical(*HERE, ANALYZER.query("copper"), 5)) == expected

    def test_points_without_a_common_term_are_not_lexical_results(self, filled: VectorStore) -> None:
        assert filled.lexical(*HERE, ANALYZER.query("unseen words"), 10) == []
        assert filled.lexical(*HERE, NO_TERMS, 10) == []

    def test_vectors_come_when_asked_for_and_have_unit_length(self, store: VectorStore) -> None:
        store.create(*HERE, SPACE)
        point = make_point(1, "copper bridge")
        store.upsert(*HERE, [replace(point, dense=point.dense * 7)])
        query, terms = EMBEDDER.embed_query("copper"), ANALYZER.query("copper")
        assert store.dense(*HERE, query, 1)[0].dense is None
        for candidate in (
            *store.dense(*HERE, query, 1, vectors=True),
            *store.lexical(*HERE, terms, 1, vectors=True),
        ):
            assert candidate.dense is not None
            np.testing.assert_allclose(candidate.dense, point.dense, atol=1e-6)
        np.testing.assert_allclose(store.vectors(*HERE, [point.id, identity(2)])[point.id], point.dense, atol=1e-6)
        assert identity(2) not in store.vectors(*HERE, [point.id, identity(2)])

    # Writing

    def test_deleted_points_leave_the_rankings_and_the_idf(self, filled: VectorStore, reference: MemoryStore) -> None:
        gone = [point.id for row, point in enumerate(some_points()) if row % 3]
        for target in (filled, reference):
            target.delete(*HERE, [*gone, identity(10**6)])
        assert filled.count(*HERE) == 200 - len(gone)
        terms = ANALYZER.query("stone bridge")
        assert_same(filled.lexical(*HERE, terms, 500), reference.lexical(*HERE, terms, 500))
        query = EMBEDDER.embed_query("stone")
        assert_same(filled.dense(*HERE, query, 500), reference.dense(*HERE, query, 500))

    def test_idf_counts_the_live_points_of_this_collection_alone(self, store: VectorStore) -> None:
        for place in (HERE, ("acme", "other"), ("globex", "docs")):
            store.create(*place, SPACE)
            store.upsert(*place, [make_point(number, "copper") for number in range(10)])
        store.upsert(*HERE, [make_point(number, "stone") for number in range(9)])
        store.delete(*HERE, [identity(0)])
        [only] = store.lexical(*HERE, ANALYZER.query("copper"), 10)
        weight = ANALYZER.document("copper").values[0]
        assert only.score == pytest.approx(weight * inverse_document_frequency(9, 1), abs=3e-5)

    def test_writing_a_point_again_replaces_all_of_it(self, store: VectorStore) -> None:
        store.create(*HERE, SPACE)
        store.upsert(*HERE, [make_point(1, "copper", a=1, b=2)])
        store.upsert(*HERE, [make_point(1, "stone", b=3)])
        assert store.count(*HERE) == 1
        assert dict(store.payloads(*HERE)) == {identity(1): {"b": 3}}
        assert store.lexical(*HERE, ANALYZER.query("copper"), 5) == []
        assert store.dense(*HERE, EMBEDDER.embed_query("stone"), 5)[0].score == pytest.approx(1, abs=1e-5)

    def test_the_last_of_equal_ids_in_one_call_counts(self, store: VectorStore) -> None:
        store.create(*HERE, SPACE)
        store.upsert(*HERE, [make_point(1, "copper", a=1), make_point(1, "stone", a=2)])
        assert dict(store.payloads(*HERE)) == {identity(1): {"a": 2}}

    def test_a_new_payload_replaces_the_old_and_leaves_the_vectors(self, filled: VectorStore) -> None:
        before = filled.vectors(*HERE, [identity(3)])[identity(3)]
        filled.set_payload(*HERE, {identity(3): {"fresh": True}, identity(10**6): {"fresh": True}})
        assert filled.count(*HERE) == 200
        assert dict(filled.payloads(*HERE))[identity(3)] == {"fresh": True}
        query = EMBEDDER.embed_query("stone")
        assert found(filled.dense(*HERE, query, 5, Eq("fresh", True))) == [identity(3)]
        assert identity(3) not in found(filled.dense(*HERE, query, 500, Eq("row", 3)))
        np.testing.assert_array_equal(filled.vectors(*HERE, [identity(3)])[identity(3)], before)

    def test_payloads_come_back_as_written_in_order_of_id(self, store: VectorStore) -> None:
        payload: dict[str, Scalar] = {
            "": "empty key",
            "a.b": "a dot",
            'x"y': "a quote",
            "$z": "a dollar",
            "a[0]": "an index",
            "line\nbreak": "\0 and \ud800",
            "long": "x" * 1_000_000,
            "int": 2**70,
            "float": 1.0,
            "tiny": 5e-324,
            "bool": False,
        }
        store.create(*HERE, SPACE)
        points = [replace(make_point(number, "stone"), payload={**payload, "row": number}) for number in (3, 1, 2)]
        store.upsert(*HERE, points)
        stored = list(store.payloads(*HERE))
        assert [id for id, _ in stored] == [identity(1), identity(2), identity(3)]
        assert stored[0][1] == {**payload, "row": 1}
        assert [type(stored[0][1][key]) for key in ("int", "float", "bool")] == [int, float, bool]
        for key, value in payload.items():
            hits = store.dense(*HERE, EMBEDDER.embed_query("stone"), 5, All((Eq(key, value), Eq("row", 2))))
            assert found(hits) == [identity(2)], key[:20]

    def test_eight_threads_lose_nothing(self, store: VectorStore) -> None:
        store.create(*HERE, SPACE)
        vector = EMBEDDER.embed_query("stone")

        def work(thread: int) -> None:
            for start in range(0, 100, 10):
                numbers = range(1000 * thread + start, 1000 * thread + start + 10)
                store.upsert(*HERE, [make_point(number, "stone", row=number) for number in numbers])
                store.dense(*HERE, vector, 5)

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(work, range(8)))
        store.flush(*HERE)
        expected = {identity(1000 * thread + number) for thread in range(8) for number in range(100)}
        assert {id for id, _ in store.payloads(*HERE)} == expected
        assert store.count(*HERE) == 800

    # Refusals

    @pytest.mark.parametrize(
        "dense", [np.zeros(16), np.full(16, np.nan), np.full(16, np.inf), np.ones(15), np.ones((1, 16))], ids=str
    )
    def test_a_vector_that_is_none_is_refused_before_anything_is_written(
        self, store: VectorStore, dense: Vectors
    ) -> None:
        store.create(*HERE, SPACE)
        with pytest.raises(CallerError, match="vector"):
            store.upsert(*HERE, [make_point(1, "stone"), replace(make_point(2, "stone"), dense=dense)])
        with pytest.raises(CallerError, match="vector"):
            store.dense(*HERE, dense, 5)
        assert store.count(*HERE) == 0

    @pytest.mark.parametrize(
        "change",
        [
            {"id": "not-a-uuid"},
            {"id": identity(1).upper().replace("0", "A")},
            {"sparse": SparseVector((1, 1), (1.0, 1.0))},
            {"sparse": SparseVector((1,), (float("nan"),))},
            {"sparse": SparseVector((-1,), (1.0,))},
            {"sparse": SparseVector((2**32,), (1.0,))},
            {"payload": {"key": None}},
            {"payload": {"key": ["a"]}},
            {"payload": {"key": float("inf")}},
            {"payload": {"key": 10**400}},
        ],
        ids=repr,
    )
    def test_a_point_that_cannot_be_kept_whole_is_refused(self, store: VectorStore, change: dict[str, Any]) -> None:
        store.create(*HERE, SPACE)
        with pytest.raises(CallerError):
            store.upsert(*HERE, [make_point(1, "stone"), replace(make_point(2, "stone"), **change)])
        assert store.count(*HERE) == 0

    def test_asking_for_no_points_is_refused(self, filled: VectorStore) -> None:
        with pytest.raises(CallerError, match="at least one"):
            filled.dense(*HERE, EMBEDDER.embed_query("stone"), 0)
        with pytest.raises(CallerError, match="at least one"):
            filled.lexical(*HERE, ANALYZER.query("stone"), -1)

    @pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 129, " padded "], ids=repr)
    def test_names_that_cannot_be_shown_are_refused(self, store: VectorStore, name: str) -> None:
        for place in ((name, "docs"), ("acme", name)):
            with pytest.raises(CallerError, match="name"):
                store.create(*place, SPACE)

    # Collections and tenants

    def test_the_same_space_again_is_no_error_and_another_is_a_conflict(self, filled: VectorStore) -> None:
        filled.create(*HERE, SPACE)
        assert filled.count(*HERE) == 200
        for other in (replace(SPACE, embedder="other"), replace(SPACE, average_length=10.0)):
            with pytest.raises(Conflict, match="lectern index"):
                filled.create(*HERE, other)
        assert filled.space(*HERE) == SPACE

    def test_a_dropped_collection_is_gone_and_can_be_made_anew(self, filled: VectorStore) -> None:
        filled.drop(*HERE)
        filled.drop(*HERE)
        with pytest.raises(NotFound):
            filled.count(*HERE)
        other = replace(SPACE, language="de")
        filled.create(*HERE, other)
        assert (filled.space(*HERE), filled.count(*HERE)) == (other, 0)

    @pytest.mark.parametrize("place", [("globex", "docs"), ("acme", "other"), ("../acme", "docs"), ("acme", "../x")])
    def test_a_collection_of_another_tenant_does_not_exist(self, filled: VectorStore, place: tuple[str, str]) -> None:
        vector, terms, point = EMBEDDER.embed_query("stone"), ANALYZER.query("stone"), make_point(1, "stone")
        verbs: Mapping[str, Callable[[], object]] = {
            "space": lambda: filled.space(*place),
            "upsert": lambda: filled.upsert(*place, [point]),
            "set_payload": lambda: filled.set_payload(*place, {point.id: {}}),
            "delete": lambda: filled.delete(*place, [point.id]),
            "flush": lambda: filled.flush(*place),
            "dense": lambda: filled.dense(*place, vector, 1),
            "lexical": lambda: filled.lexical(*place, terms, 1),
            "vectors": lambda: filled.vectors(*place, [point.id]),
            "payloads": lambda: list(filled.payloads(*place)),
            "count": lambda: filled.count(*place),
        }
        for call in verbs.values():
            with pytest.raises(NotFound, match="no collection"):
                call()
        filled.drop(*place)
        assert filled.count(*HERE) == 200

    def test_tenants_with_equal_names_stay_apart(self, filled: VectorStore) -> None:
        for place in (("globex", "docs"), ("../acme", "docs"), ("ac", "medocs"), ("ACME", "docs")):
            filled.create(*place, SPACE)
            filled.upsert(*place, [make_point(1, "stone", tenant=place[0])])
            assert [payload for _, payload in filled.payloads(*place)] == [{"tenant": place[0]}]
            filled.drop(*place)
        assert filled.count(*HERE) == 200
