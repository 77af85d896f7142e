from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rank_bm25 import BM25Okapi

from framework.retrieval.bm25 import K1, Analyzer, B, inverse_document_frequency, term_id
from framework.retrieval.memory import MemoryStore
from framework.retrieval.store import Point, Space
from framework.testing.store_contract import identity

WORDS = ["ash", "birch", "cedar", "date", "elm", "fir", "gum", "holly"]
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join), min_size=1, max_size=12)


class Oracle(BM25Okapi):
    """rank-bm25 with IDF ln(1 + (N - n + 1/2) / (n + 1/2)) and a given average length."""

    def _calc_idf(self, nd: dict[str, int]) -> None:
        self.idf = {word: math.log(1 + (self.corpus_size - n + 0.5) / (n + 0.5)) for word, n in nd.items()}


@given(TEXTS, st.lists(st.sampled_from([*WORDS, "absent"]), min_size=1, max_size=6), st.sampled_from([3.0, 150.0]))
def test_scores_equal_rank_bm25(texts: list[str], query: list[str], average: float) -> None:
    oracle = Oracle([text.split() for text in texts], k1=K1, b=B)
    oracle.avgdl = average
    expected = oracle.get_scores(query)
    analyzer, store = Analyzer("none", average), MemoryStore()
    store.create("t", "c", Space("e", 2, average_length=average))
    dense = np.array([1, 0], dtype=np.float32)
    store.upsert("t", "c", [Point(identity(i), dense, analyzer.document(text)) for i, text in enumerate(texts)])
    found = {c.id: c.score for c in store.lexical("t", "c", analyzer.query(" ".join(query)), len(texts))}
    assert [found.get(identity(i), 0) for i in range(len(texts))] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("language", "text", "query"),
    [
        ("en", "She was running.", "RUNS"),
        ("en", "A ﬁne café", "fine cafés"),
        ("de", "Die Verträge wurden gekündigt", "Vertrag"),
        ("ru", "Он читал книги", "книга"),
        ("zh", "今天的水稻种植技术", "水稻"),
        ("zh", "今天的水稻种植技术", "植"),
        ("zh", "使用GPU训练", "gpu"),
        ("ja", "東京タワーへ行く", "タワー"),
        ("ko", "한국어를 공부합니다", "공부"),
        ("th", "ประเทศไทยมีอาหารอร่อย", "อาหาร"),
        ("hi", "हिन्दी एक भाषा है", "भाषा"),
        ("xx", "kept whole", "whole"),
    ],
)
def test_a_query_meets_the_text_in_its_language(language: str, text: str, query: str) -> None:
    analyzer = Analyzer(language)
    terms = analyzer.query(query).indices
    assert terms
    assert set(terms) <= set(analyzer.document(text).indices)


def test_a_vowel_sign_does_not_cut_its_word() -> None:
    assert len(Analyzer("hi").query("हिन्दी").indices) == 1
    assert len(Analyzer("ar").query("كِتَاب").indices) == 1


def test_text_without_words_has_no_terms() -> None:
    for text in ("", "  \n", "?!… —", "\0"):
        assert Analyzer("en").document(text).indices == ()


@given(st.text(max_size=200))
def test_any_text_gives_distinct_sorted_ids_with_weights_below_the_limit(text: str) -> None:
    vector = Analyzer("en").document(text)
    assert list(vector.indices) == sorted(set(vector.indices))
    assert all(0 < value < K1 + 1 for value in vector.values)


def test_term_ids_never_change() -> None:
    assert (term_id("lectern"), term_id("水稻")) == (0x4A9303B0, 0x65C81225)


def test_idf_is_positive_even_for_a_term_that_all_points_have() -> None:
    assert inverse_document_frequency(10, 10) > 0


def test_threads_share_an_analyzer() -> None:
    texts = [" ".join(f"{word}{i}ing" for word in WORDS) for i in range(300)]
    shared = Analyzer("en")
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(shared.document, texts)) == [Analyzer("en").document(text) for text in texts]
