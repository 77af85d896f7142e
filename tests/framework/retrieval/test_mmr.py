from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.models.base import Vectors
from framework.retrieval.mmr import maximal_marginal_relevance


def candidates(seed: int, count: int) -> tuple[list[float], Vectors]:
    """Relevances, best first, and unit vectors."""
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((count, 4)).astype(np.float32)
    return sorted(random.random(count).tolist(), reverse=True), vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def plain(relevance: list[float], vectors: Vectors, trade_off: float, k: int) -> list[int]:
    """The paper's definition, word by word."""
    picked: list[int] = []
    while len(picked) < min(k, len(relevance)):

        def score(i: int) -> float:
            nearest = max((float(vectors[i] @ vectors[j]) for j in picked), default=0.0)
            return trade_off * relevance[i] - (1 - trade_off) * nearest

        picked.append(max((i for i in range(len(relevance)) if i not in picked), key=lambda i: (score(i), -i)))
    return picked


SEEDS, COUNTS = st.integers(0, 10**6), st.integers(0, 12)


@given(SEEDS, COUNTS, st.floats(0, 1), st.integers(1, 15))
def test_it_picks_what_the_definition_picks(seed: int, count: int, trade_off: float, k: int) -> None:
    relevance, vectors = candidates(seed, count)
    picked = maximal_marginal_relevance(relevance, vectors, trade_off, k)
    assert [position for position, _ in picked] == plain(relevance, vectors, trade_off, k)
    scores = [score for _, score in picked]
    # The first pick is compared with nothing, so a second one that points away from it may score higher.
    assert scores[1:] == sorted(scores[1:], reverse=True)


@given(SEEDS, COUNTS)
def test_one_is_the_order_of_relevance(seed: int, count: int) -> None:
    relevance, vectors = candidates(seed, count)
    assert [position for position, _ in maximal_marginal_relevance(relevance, vectors, 1, count)] == list(range(count))


@given(SEEDS, st.integers(2, 12))
def test_zero_takes_the_most_relevant_and_then_the_least_similar(seed: int, count: int) -> None:
    relevance, vectors = candidates(seed, count)
    first, second = [position for position, _ in maximal_marginal_relevance(relevance, vectors, 0, 2)]
    assert first == 0
    assert second == 1 + int(np.argmin(vectors[1:] @ vectors[0]))


@given(SEEDS, COUNTS, st.randoms())
def test_the_order_of_the_candidates_does_not_matter(seed: int, count: int, random: object) -> None:
    relevance, vectors = candidates(seed, count)
    shuffled = list(range(count))
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    picked = maximal_marginal_relevance(relevance, vectors, 0.5, 5)
    moved = maximal_marginal_relevance([relevance[i] for i in shuffled], vectors[shuffled], 0.5, 5)
    assert [shuffled[position] for position, _ in moved] == [position for position, _ in picked]


def test_a_copy_is_passed_over_for_something_new() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    picked = maximal_marginal_relevance([1.0, 0.99, 0.5], vectors, 0.5, 2)
    assert [position for position, _ in picked] == [0, 2]
    assert picked[1][1] == pytest.approx(0.25)
