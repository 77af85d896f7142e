"""How often the better of two held-out answers is scored higher, with its interval."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

from framework.training.run import RunFolder

Z: Final = 1.959964  # of a 95% interval


@dataclass(frozen=True, slots=True)
class Share:
    """A share of n, with its 95% interval."""

    mean: float
    low: float
    high: float
    n: int


def share(hits: Sequence[bool], groups: Sequence[str]) -> Share:
    """Wilson's interval (1927), with n divided by the design effect (Kish 1965): pairs of a document are alike.

    Args:
        hits: at least one.
        groups: the document of each.
    """
    assert hits, "nothing to count"
    assert len(hits) == len(groups), (len(hits), len(groups))
    n, mean = len(hits), sum(hits) / len(hits)
    effective = n / _design_effect(hits, groups, mean)
    width = Z / (1 + Z**2 / effective) * math.sqrt(mean * (1 - mean) / effective + Z**2 / (4 * effective**2))
    centre = (mean + Z**2 / (2 * effective)) / (1 + Z**2 / effective)
    return Share(mean, max(0.0, centre - width), min(1.0, centre + width), n)


def _design_effect(hits: Sequence[bool], groups: Sequence[str], mean: float) -> float:
    """Variance of the mean when whole documents are drawn, by its variance when single pairs are; at least 1."""
    sizes = Counter(groups)
    if mean in (0.0, 1.0) or len(sizes) == 1:
        return len(hits) / len(sizes)  # nothing varies: each document counts once
    right = Counter(group for hit, group in zip(hits, groups, strict=True) if hit)
    spread = sum((right[group] - mean * size) ** 2 for group, size in sizes.items())
    clustered = spread * len(sizes) / (len(sizes) - 1) / len(hits) ** 2
    return max(1.0, clustered / (mean * (1 - mean) / len(hits)))


def record(run: RunFolder, margins: Sequence[float], documents: Sequence[str]) -> Share:
    """Count, and write into run.json.

    Args:
        margins: score of the better answer less that of the worse one, by pair.
        documents: what each pair was made from.
    """
    found = share([margin > 0 for margin in margins], documents)
    run.note(pairs={"accuracy": asdict(found), "margin": sum(margins) / len(margins)})
    return found
