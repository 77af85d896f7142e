"""Several rankings into one, by the scores or by the ranks alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

EQUAL = 1e-9  # a spread that is only rounding


@dataclass(frozen=True, slots=True)
class Ranking:
    """Ids with their scores, best first, and what the whole ranking weighs; one of weight 0 adds not even its ids."""

    scores: Sequence[tuple[str, float]]
    weight: float = 1.0


def reciprocal_rank_fusion(rankings: Sequence[Ranking], k: float = 60.0) -> list[tuple[str, float]]:
    """Ids with the sum of weight / (k + rank), rank from 1, best first; equal sums go by id.

    Follows Cormack, Clarke and Büttcher, SIGIR 2009.
    """
    sums: dict[str, float] = defaultdict(float)
    for ranking in rankings:
        if ranking.weight > 0:
            for rank, (id, _) in enumerate(ranking.scores, 1):
                sums[id] += ranking.weight / (k + rank)
    return _ordered(sums)


def distribution_based_fusion(rankings: Sequence[Ranking]) -> list[tuple[str, float]]:
    """Ids with the sum of weight * (score - low) / (high - low), best first; equal sums go by id.

    low and high lie three standard deviations below and above the mean of a ranking's scores; where all are equal, each
    counts half. Follows distribution-based score fusion (Mazzeschi, 2023), without its clipping of high scores.
    """
    sums: dict[str, float] = defaultdict(float)
    for ranking in rankings:
        if ranking.weight > 0 and ranking.scores:
            values = [score for _, score in ranking.scores]
            mean = math.fsum(values) / len(values)
            deviation = math.sqrt(math.fsum([(value - mean) ** 2 for value in values]) / len(values))
            slope = 1 / (6 * deviation) if deviation > EQUAL else 0.0
            for id, score in ranking.scores:
                place = 0.5 + (score - mean) * slope
                if place > 0:
                    sums[id] += ranking.weight * place
                else:
                    sums[id] += 0.0
    return _ordered(sums)


def _ordered(sums: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(sums.items(), key=lambda item: (-item[1], item[0]))
