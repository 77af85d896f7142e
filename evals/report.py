"""Means with their intervals, the difference of two runs, and the tables that show them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rich.table import Table

    from evals.gates import Verdict
    from evals.run_log import Record

CONFIDENCE = 0.95
_BLOCK = 4_000_000  # resampled values held at once


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over `n` samples, with its 95% interval."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of B - A over the samples that both have, with its interval; `ties` of the n are equal."""

    metric: str
    a: float
    b: float
    estimate: Estimate
    ties: int

    @property
    def significant(self) -> bool:
        """The interval leaves out 0."""
        return self.estimate.low > 0 or self.estimate.high < 0


def bootstrap(values: Sequence[float], *, seed: int = 0, resamples: int = 2000) -> Estimate:
    """Percentile bootstrap of the mean (Efron 1979). The same values and seed give the same interval.

    Args:
        values: at least one, all finite.
    """
    data = np.asarray(values, dtype=np.float64)
    assert data.size, "nothing to average"
    assert np.isfinite(data).all(), "a score is no number"
    rng = np.random.default_rng(seed)
    means: list[NDArray[np.float64]] = []
    left = resamples
    while left:
        rows = min(left, max(1, _BLOCK // data.size))
        means.append(data[rng.integers(0, data.size, (rows, data.size))].mean(axis=1))
        left -= rows
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(means), (tail, 1 - tail))
    return Estimate(float(data.mean()), float(low), float(high), int(data.size))


def estimate(values: Sequence[float], *, seed: int = 0, resamples: int = 2000) -> Estimate:
    """The mean with its interval: Wilson's where every value is 0 or 1, otherwise the bootstrap's.

    Unlike a bootstrap's, Wilson's keeps its width where all are equal: that all of n were right shows no more than that
    about 4 / n are not.
    """
    if set(values) <= {0, 1}:
        return wilson(sum(value == 1 for value in values), len(values))
    return bootstrap(values, seed=seed, resamples=resamples)


def wilson(right: int, n: int) -> Estimate:
    """A proportion with its score interval (Wilson 1927).

    Args:
        n: at least one.
    """
    mean, z = right / n, NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    middle = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return Estimate(mean, max(0.0, min(mean, middle - half)), min(1.0, max(mean, middle + half)), n)


def summarise(
    records: Sequence[Record], metrics: Sequence[str], *, errors: str = "zero", seed: int = 0, resamples: int = 2000
) -> dict[str, Estimate]:
    """An estimate for each metric that applied to at least one sample; `errors` as in `RunConfig`."""
    counted = [record for record in records if errors == "zero" or record.error is None]
    found = {}
    for name in metrics:
        values = [record.scores[name] for record in counted if name in record.scores]
        if values:
            found[name] = estimate(values, seed=seed, resamples=resamples)
    return found


def paired(
    a: Mapping[str, Record], b: Mapping[str, Record], metric: str, *, errors: str = "zero", seed: int = 0
) -> Difference | None:
    """B - A over the samples that both scored; None where there is none. `errors` as in `RunConfig`.

    The interval is Tango's where scores of 0 to 1 differ by nothing or all of it, and otherwise the bootstrap's.
    """
    left, right = shared_scores(a, b, metric, errors=errors)
    if not left:
        return None
    differences = [after - before for before, after in zip(left, right, strict=True)]
    if set(differences) <= {-1, 0, 1} and all(0 <= score <= 1 for score in left + right):
        estimate = tango(differences.count(1), differences.count(-1), len(differences))
    else:
        estimate = bootstrap(differences, seed=seed)
    return Difference(metric, float(np.mean(left)), float(np.mean(right)), estimate, differences.count(0))


def shared_scores(
    a: Mapping[str, Record], b: Mapping[str, Record], metric: str, *, errors: str = "zero"
) -> tuple[list[float], list[float]]:
    """A's and B's scores of the samples that both scored, in A's order; `errors` as in `RunConfig`."""
    pairs = [(record, b[key]) for key, record in a.items() if key in b]
    counted = [pair for pair in pairs if errors == "zero" or all(record.error is None for record in pair)]
    scores = [(x.scores[metric], y.scores[metric]) for x, y in counted if metric in x.scores and metric in y.scores]
    return [x for x, _ in scores], [y for _, y in scores]


def tango(more: int, less: int, n: int) -> Estimate:
    """The difference of two paired proportions with its score interval (Tango 1998).

    Unlike a bootstrap's it keeps its width where no pair differs: that none of n did shows no more than about 4 / n.

    Args:
        more, less: pairs in which only the second, or only the first, is right.
        n: all pairs, at least one.
    """
    mean, z2 = (more - less) / n, NormalDist().inv_cdf((1 + CONFIDENCE) / 2) ** 2

    def within(delta: float) -> bool:
        """Whether the score test does not refuse this difference; `share` is that of `less` under it, most likely."""
        linear = (2 * n - more + less) * delta - more - less
        root = math.sqrt(max(0.0, linear**2 + 8 * n * less * delta * (1 - delta)))
        share = (root - linear) / (4 * n)
        return (more - less - n * delta) ** 2 <= z2 * n * (2 * share + delta * (1 - delta))

    def end(inside: float, outside: float) -> float:
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if within(middle) else (inside, middle)
        return inside

    return Estimate(mean, end(mean, -1.0), end(mean, 1.0), n)


def summary_table(name: str, metrics: Sequence[str], columns: Mapping[str, Mapping[str, Estimate]]) -> Table:
    """One column for each variant, one row for each metric; a single variant gets its interval and n in columns."""
    from rich.table import Table

    table = Table(title=name, title_justify="left")
    table.add_column("metric")
    if len(columns) == 1:
        (estimates,) = columns.values()
        for heading in ("mean", "95% interval", "n"):
            table.add_column(heading, justify="right")
        for metric in metrics:
            table.add_row(metric, *_cells(estimates.get(metric)))
        return table
    for heading in columns:
        table.add_column(heading, justify="right")
    for metric in metrics:
        cells = [_cells(estimates.get(metric)) for estimates in columns.values()]
        table.add_row(metric, *(f"{mean} {interval}" for mean, interval, _ in cells))
    table.add_row("n", *(str(max((e.n for e in estimates.values()), default=0)) for estimates in columns.values()))
    return table


def difference_table(name_a: str, name_b: str, differences: Sequence[Difference]) -> Table:
    from rich.table import Table

    table = Table(title=f"A = {name_a}\nB = {name_b}", title_justify="left")
    table.add_column("metric")
    for heading in ("A", "B", "B - A", "95% interval", "n", "equal"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for d in differences:
        e = d.estimate
        verdict = "differs" if d.significant else "no difference shown"
        interval = f"[{e.low:+.4f}, {e.high:+.4f}]"
        table.add_row(d.metric, f"{d.a:.4f}", f"{d.b:.4f}", f"{e.mean:+.4f}", interval, str(e.n), str(d.ties), verdict)
    return table


def verdict_line(verdict: Verdict, name: str = "") -> str:
    """PASS or FAIL, the gate, and the value that it judged."""
    value = "the metric applied to no sample" if verdict.value is None else f"measured {verdict.value:.4f}"
    place = f" [{name}]" if name else ""
    return f"{'PASS' if verdict.passed else 'FAIL'}{place} {verdict.gate}: {value}"


def _cells(estimate: Estimate | None) -> tuple[str, str, str]:
    if estimate is None:
        return "-", "", "0"
    return f"{estimate.mean:.4f}", f"({estimate.low:.3f}-{estimate.high:.3f})", str(estimate.n)
