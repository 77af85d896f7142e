"""Reranking: the best candidates, read together with the query by a model, in a new order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Scored = tuple[str, float]


def rerank(order: Sequence[Scored], scores: Mapping[str, float], first_stage_weight: float) -> list[Scored]:
    """The order after reranking, each with the score that it stands by.

    Both scores of the reranked are scaled linearly onto 0 to 1 and added by weight. The others follow with what keeps
    their distances as they were, below the last of the reranked. Equal scores go by id.

    Args:
        order: ids with the scores of the ranking before, best first.
        scores: the model's scores of the first of them, by id.
        first_stage_weight: from 0, the model alone, to 1, the order as it was.
    """
    head, tail = order[: len(scores)], order[len(scores) :]
    assert all(id in scores for id, _ in head), "the first are the ones that are reranked"
    if not head:
        return []
    before = [score for _, score in head]
    blended = first_stage_weight * _scaled(before) + (1 - first_stage_weight) * _scaled([scores[id] for id, _ in head])
    # Rounded, so that what a batch did to the last digits can't move a tie.
    ranked = [(id, round(float(score), 6)) for (id, _), score in zip(head, blended, strict=True)]
    ranked.sort(key=lambda item: (-item[1], item[0]))
    spread = (max(before) - min(before)) or 1.0
    low, last = ranked[-1][1], min(before)
    return ranked + [(id, low - (last - score) / spread) for id, score in tail]


def _scaled(values: Sequence[float]) -> NDArray[np.float64]:
    found = np.asarray(values, np.float64)
    spread = float(np.ptp(found))
    return (found - found.min()) / spread if spread > 0 else np.full(len(found), 0.5)
