"""Several rankings into one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ranking:
    """Ids, best first, and what a place among them weighs in the fusion."""

    ids: Sequence[str]
    weight: float = 1.0


def reciprocal_rank_fusion(rankings: Sequence[Ranking], k: float = 60.0) -> list[tuple[str, float]]:
    """Ids with the sum of weight / (k + rank), rank from 1, best first; equal scores go by id.

    Follows Cormack, Clarke and Büttcher, SIGIR 2009. A ranking of weight 0 adds nothing, not even its ids.
    """
    scores: dict[str, float] = defaultdict(float)
    for ranking in rankings:
        if ranking.weight > 0:
            for rank, id in enumerate(ranking.ids, 1):
                scores[id] += ranking.weight / (k + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))
