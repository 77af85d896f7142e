from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.metrics import METRICS, parse_metric
from evals.sample import Output, Sample
from framework.errors import ConfigError, NotFound

DOCUMENTS = [f"d{i}" for i in range(12)]
judgements = st.dictionaries(st.sampled_from(DOCUMENTS), st.integers(-1, 4), min_size=1)
rankings = st.lists(st.sampled_from(DOCUMENTS), unique=True)
cutoffs = st.integers(1, 15)


def score(
    name: str, relevant: dict[str, int], ranking: list[str], excluded: frozenset[str] = frozenset()
) -> float | None:
    sample = Sample("q", "question", relevant, excluded=excluded)
    return parse_metric(name).score(sample, Output(ranking=tuple(ranking)))


def gains(relevant: dict[str, int], ranking: list[str]) -> list[int]:
    return [max(relevant.get(document, 0), 0) for document in ranking]


def dcg(values: list[int]) -> float:
    return sum(value / math.log2(rank + 2) for rank, value in enumerate(values))


def by_hand(name: str, relevant: dict[str, int], ranking: list[str], k: int) -> float:
    """Textbook formulas, written without regard to the library."""
    found = gains(relevant, ranking)
    wanted = sum(1 for grade in relevant.values() if grade > 0)
    match name:
        case "ndcg":
            ideal = sorted((max(grade, 0) for grade in relevant.values()), reverse=True)
            return dcg(found[:k]) / dcg(ideal[:k])
        case "recall":
            return sum(1 for gain in found[:k] if gain) / wanted
        case "precision":
            return sum(1 for gain in found[:k] if gain) / k
        case "success":
            return float(any(found[:k]))
        case "mrr":
            return next((1 / (rank + 1) for rank, gain in enumerate(found[:k]) if gain), 0.0)
        case _:
            hits = [
                sum(1 for gain in found[: rank + 1] if gain) / (rank + 1) for rank, gain in enumerate(found[:k]) if gain
            ]
            return sum(hits) / wanted


@pytest.mark.parametrize("name", ["ndcg", "recall", "precision", "success", "mrr", "map"])
@given(relevant=judgements, ranking=rankings, k=cutoffs)
def test_the_library_agrees_with_the_textbook(name: str, relevant: dict[str, int], ranking: list[str], k: int) -> None:
    value = score(f"{name}@{k}", relevant, ranking)
    if max(relevant.values()) <= 0:
        assert value is None
    else:
        assert value == pytest.approx(by_hand(name, relevant, ranking, k), abs=1e-6)
        assert 0 <= value <= 1


@settings(deadline=None)  # the first example imports scikit-learn
@given(relevant=judgements, order=st.permutations(DOCUMENTS), k=cutoffs)
def test_ndcg_agrees_with_scikit_learn(relevant: dict[str, int], order: list[str], k: int) -> None:
    from sklearn.metrics import ndcg_score

    if max(relevant.values()) <= 0:
        return
    truth = np.array([gains(relevant, order)])
    theirs = ndcg_score(truth, np.arange(len(order), 0, -1)[None, :], k=k)
    assert score(f"ndcg@{k}", relevant, order) == pytest.approx(theirs, abs=1e-6)


@given(relevant=judgements, ranking=rankings)
def test_without_a_cutoff_the_whole_ranking_counts(relevant: dict[str, int], ranking: list[str]) -> None:
    for name in ("ndcg", "mrr", "map"):
        assert score(name, relevant, ranking) == score(f"{name}@1000", relevant, ranking)


def test_the_targets_order_stands_whatever_the_ids() -> None:
    assert score("mrr", {"a": 1}, ["a", "z"]) == score("mrr", {"z": 1}, ["z", "a"]) == 1.0


def test_excluded_documents_leave_the_ranking_and_make_room() -> None:
    assert score("mrr", {"b": 1}, ["a", "b"], excluded=frozenset({"a"})) == 1.0


def test_a_document_returned_twice_counts_once() -> None:
    assert score("precision@2", {"a": 1}, ["a", "a"]) == 0.5


def test_an_empty_ranking_scores_zero() -> None:
    assert score("ndcg@10", {"a": 1}, []) == 0.0


@pytest.mark.parametrize("text", ["recall", "ndcg@0", "ndcg@-1", "ndcg@x", "ndcg@", "ndcg@²", "exact_match@3"])
def test_a_wrong_cutoff_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_metric(text)


def test_an_unknown_metric_is_refused_with_those_that_exist() -> None:
    with pytest.raises(NotFound, match="ndcg"):
        parse_metric("ndgc@10")


def test_every_metric_tells_what_it_says() -> None:
    assert all(METRICS.get(name).summary for name in METRICS)
