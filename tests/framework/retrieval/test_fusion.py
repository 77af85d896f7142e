from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.retrieval.fusion import Ranking, reciprocal_rank_fusion

IDS = st.lists(st.sampled_from("abcdefghij"), unique=True, max_size=10)


def test_scores_are_those_of_the_textbook() -> None:
    fused = reciprocal_rank_fusion([Ranking("ab"), Ranking("bc")])
    assert fused == [("b", 1 / 62 + 1 / 61), ("a", 1 / 61), ("c", 1 / 62)]


def test_a_weight_multiplies_a_ranking_and_zero_removes_it() -> None:
    assert reciprocal_rank_fusion([Ranking("a", 2.0), Ranking("b", 0.0)]) == [("a", 2 / 61)]


def test_equal_scores_go_by_id() -> None:
    assert [id for id, _ in reciprocal_rank_fusion([Ranking("ba"), Ranking("ab")])] == ["a", "b"]


@given(st.lists(IDS, max_size=4), st.integers(1, 100))
def test_every_id_has_the_exact_sum_of_its_shares(rankings: list[list[str]], k: int) -> None:
    fused = reciprocal_rank_fusion([Ranking(ids) for ids in rankings], k)
    exact = {
        id: sum(Fraction(1, k + ids.index(id) + 1) for ids in rankings if id in ids)
        for id in {id for ids in rankings for id in ids}
    }
    assert dict(fused) == pytest.approx({id: float(score) for id, score in exact.items()})
    assert fused == sorted(fused, key=lambda item: (-item[1], item[0]))


@given(IDS)
def test_one_ranking_keeps_its_order(ids: list[str]) -> None:
    assert [id for id, _ in reciprocal_rank_fusion([Ranking(ids)])] == ids
