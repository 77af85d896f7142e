"""Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from framework.models.base import Vectors


def maximal_marginal_relevance(
    relevance: Sequence[float], vectors: Vectors, trade_off: float, k: int
) -> list[tuple[int, float]]:
    """Up to k of the candidates, one by one the best in trade_off * relevance - (1 - trade_off) * similarity.

    Args:
        relevance: of shape (n,), on the scale of a cosine, best first: equal scores go by position.
        vectors: of shape (n, dimensions), unit length.
        trade_off: 1 keeps the order of relevance; 0 picks what is least similar to all picked before, starting
            from the most relevant.

    Returns:
        Positions with the score each had when it was picked. From the second on, scores never rise.
    """
    own = trade_off * np.asarray(relevance, dtype=np.float64)
    nearest = np.zeros(len(own))
    open_ = np.ones(len(own), dtype=bool)
    picked: list[tuple[int, float]] = []
    while len(picked) < min(k, len(own)):
        scores = np.where(open_, own - (1 - trade_off) * nearest, -np.inf)
        best = int(np.argmax(scores))
        picked.append((best, float(scores[best])))
        open_[best] = False
        similarity = vectors @ vectors[best]
        nearest = similarity if len(picked) == 1 else np.maximum(nearest, similarity)
    return picked
