from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.retrieval.fusion import EQUAL, Ranking, distribution_based_fusion, reciprocal_rank_fusion

IDS = st.lists(st.sampled_from("abcdefghij"), unique=True, max_size=10)
SCORED = st.dictionaries(st.sampled_from("abcdefghij"), st.floats(-10, 50), max_size=10)


def ranked(ids: str | list[str], weight: float = 1.0) -> Ranking:
    """These ids with falling scores."""
    return Ranking([(id, float(-place)) for place, id in enumerate(ids)], weight)


def test_scores_are_those_of_the_textbook() -> None:
    fused = reciprocal_rank_fusion([ranked("ab"), ranked("bc")])
    assert fused == [("b", 1 / 62 + 1 / 61), ("a", 1 / 61), ("c", 1 / 62)]


def test_a_weight_multiplies_a_ranking_and_zero_removes_it() -> None:
    assert reciprocal_rank_fusion([ranked("a", 2.0), ranked("b", 0.0)]) == [("a", 2 / 61)]


def test_equal_scores_go_by_id() -> None:
    assert [id for id, _ in reciprocal_rank_fusion([ranked("ba"), ranked("ab")])] == ["a", "b"]


@given(st.lists(IDS, max_size=4), st.integers(1, 100))
def test_every_id_has_the_exact_sum_of_its_shares(rankings: list[list[str]], k: int) -> None:
    fused = reciprocal_rank_fusion([ranked(ids) for ids in rankings], k)
    exact = {
        id: sum(Fraction(1, k + ids.index(id) + 1) for ids in rankings if id in ids)
        for id in {id for ids in rankings for id in ids}
    }
    assert dict(fused) == pytest.approx({id: float(score) for id, score in exact.items()})
    assert fused == sorted(fused, key=lambda item: (-item[1], item[0]))


@given(IDS)
def test_one_ranking_keeps_its_order(ids: list[str]) -> None:
    assert [id for id, _ in reciprocal_rank_fusion([ranked(ids)])] == ids


@given(st.lists(st.tuples(SCORED, st.floats(0.1, 5)), max_size=3))
def test_scores_are_added_in_units_of_their_own_spread(parts: list[tuple[dict[str, float], float]]) -> None:
    fused = distribution_based_fusion([Ranking(list(scores.items()), weight) for scores, weight in parts])
    expected: dict[str, float] = {}
    for scores, weight in parts:
        low = np.mean(list(scores.values())) - 3 * np.std(list(scores.values())) if scores else 0
        spread = 6 * np.std(list(scores.values())) if scores else 0
        for id, score in scores.items():
            place = (score - low) / spread if spread > 6 * EQUAL else None
            expected[id] = expected.get(id, 0) + (weight * max(place, 0) if place is not None else np.nan)
    for id, score in fused:
        assert np.isnan(expected[id]) or score == pytest.approx(expected[id], rel=1e-4, abs=1e-4)
    assert {id for id, _ in fused} == set(expected)
    assert fused == sorted(fused, key=lambda item: (-item[1], item[0]))


def test_a_ranking_of_equal_scores_counts_half() -> None:
    assert distribution_based_fusion([Ranking([("b", 2.0), ("a", 2.0)]), Ranking([("c", 7.0)], 2.0)]) == [
        ("c", 1.0),
        ("a", 0.5),
        ("b", 0.5),
    ]


def test_moving_or_stretching_a_rankings_scores_changes_nothing() -> None:
    plain = Ranking([("a", 3.0), ("b", 1.0), ("c", 0.0)])
    other = Ranking([(id, 10 * score - 4) for id, score in plain.scores])
    second = Ranking([("c", 9.0), ("a", 8.0), ("d", 2.0)])
    fused, moved = (distribution_based_fusion([first, second]) for first in (plain, other))
    assert [id for id, _ in fused] == [id for id, _ in moved]
    assert [score for _, score in fused] == pytest.approx([score for _, score in moved])


def test_a_score_far_above_the_others_is_not_clipped() -> None:
    scores = [("best", 100.0), *[(f"{i}", float(i % 2)) for i in range(50)]]
    assert distribution_based_fusion([Ranking(scores)])[0][1] > 1
