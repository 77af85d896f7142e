from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.gates import judge, parse_gate
from evals.report import Estimate, bootstrap, estimate, paired, summarise, tango, verdict_line, wilson
from evals.run_log import Record
from framework.errors import ConfigError

scores = st.lists(st.floats(0, 1), min_size=1, max_size=50)


def record(id: str, error: str | None = None, **values: float) -> Record:
    return Record(id, {}, None, values, error, 0.0)


@given(values=scores)
def test_the_interval_holds_the_mean_and_stays_within_the_values(values: list[float]) -> None:
    estimate = bootstrap(values, resamples=200)
    assert estimate.n == len(values)
    assert estimate.mean == pytest.approx(sum(values) / len(values))
    slack = 1e-9
    assert min(values) - slack <= estimate.low <= estimate.high <= max(values) + slack
    assert all(math.isfinite(x) for x in (estimate.mean, estimate.low, estimate.high))


def test_the_interval_is_that_of_the_normal_approximation_for_many_values() -> None:
    values = np.random.default_rng(1).normal(0.5, 0.1, 2000)
    estimate = bootstrap(values.tolist())
    half = 1.96 * values.std() / math.sqrt(2000)
    assert estimate.low == pytest.approx(estimate.mean - half, abs=half / 10)
    assert estimate.high == pytest.approx(estimate.mean + half, abs=half / 10)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(1).uniform(size=40).tolist()
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)
    assert bootstrap(values, seed=3) != bootstrap(values, seed=4)


def test_large_runs_are_resampled_in_blocks() -> None:
    assert bootstrap([0.0, 1.0] * 500_000, resamples=10).mean == 0.5


def test_failed_samples_score_zero_or_are_left_out_as_asked() -> None:
    records = [record("1", f1=1.0), record("2", error="broke", f1=0.0)]
    assert summarise(records, ["f1"])["f1"].mean == 0.5
    assert summarise(records, ["f1"], errors="exclude")["f1"].mean == 1.0


def test_a_metric_that_applied_to_nothing_has_no_estimate() -> None:
    assert summarise([record("1", f1=1.0)], ["declined"]) == {}


def test_a_paired_difference_uses_the_samples_that_both_have() -> None:
    a = {key: record(key, f1=0.2) for key in "abc"}
    b = {key: record(key, f1=0.5) for key in "bcd"}
    difference = paired(a, b, "f1")
    assert difference is not None
    assert difference.estimate.n == 2
    assert difference.estimate.mean == pytest.approx(0.3)
    assert difference.significant
    assert paired(a, b, "declined") is None


def test_pairing_shows_a_difference_that_separate_intervals_hide() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0, 0.9, 60)
    a = {str(i): record(str(i), f1=float(x)) for i, x in enumerate(base)}
    b = {str(i): record(str(i), f1=float(x) + 0.05) for i, x in enumerate(base)}
    separate = bootstrap(base.tolist()), bootstrap((base + 0.05).tolist())
    assert separate[0].high > separate[1].low
    difference = paired(a, b, "f1")
    assert difference is not None
    assert difference.significant


def test_equal_runs_do_not_differ() -> None:
    a = {key: record(key, f1=0.4) for key in "abc"}
    difference = paired(a, a, "f1")
    assert difference is not None
    assert (difference.significant, difference.ties) == (False, 3)


@pytest.mark.parametrize(
    ("more", "less", "n"), [(0, 0, 40), (1, 0, 20), (0, 1, 44), (1, 7, 21), (12, 1, 50), (9, 9, 30)]
)
def test_tango_s_interval_ends_where_the_score_test_refuses(more: int, less: int, n: int) -> None:
    """The share of pairs that only the first gets right is found here by trying all, there by Tango's formula."""
    found = tango(more, less, n)
    assert found.mean == (more - less) / n
    for end, sign in ((found.low, -1), (found.high, 1)):
        statistics = []
        for delta in (end - sign * 0.002, end + sign * 0.002):
            share = np.linspace(max(0, -delta), (1 - delta) / 2, 200_001)[1:-1]
            likelihood = (
                more * np.log(share + delta) + less * np.log(share) + (n - more - less) * np.log(1 - 2 * share - delta)
            )
            best = share[likelihood.argmax()]
            variance = (2 * best + delta - delta**2) / n
            statistics.append(abs(found.mean - delta) / math.sqrt(variance))
        assert statistics[0] < 1.96 < statistics[1]


def test_pairs_of_which_none_differs_leave_room_for_a_difference() -> None:
    a = {str(n): record(str(n), exact_match=float(n % 2), steps=2.0) for n in range(40)}
    difference = paired(a, a, "exact_match")
    assert difference is not None
    assert (difference.ties, difference.estimate) == (40, tango(0, 0, 40))
    assert difference.estimate.low == pytest.approx(-(1.96**2) / (40 + 1.96**2), abs=1e-4)
    steps = paired(a, a, "steps")
    assert steps is not None
    assert steps.estimate.low == 0


@pytest.mark.parametrize(("right", "n"), [(0, 2), (0, 4), (4, 4), (9, 9), (3, 4), (170, 240)])
def test_wilson_s_interval_ends_where_the_score_test_refuses(right: int, n: int) -> None:
    found = estimate([1.0] * right + [0.0] * (n - right))
    assert found == wilson(right, n)
    assert (found.mean, found.n) == (right / n, n)
    assert 0 <= found.low <= found.mean <= found.high <= 1
    for end in {found.low, found.high} - {0.0, 1.0}:
        assert abs(found.mean - end) / math.sqrt(end * (1 - end) / n) == pytest.approx(1.96, abs=1e-3)


def test_four_of_four_leave_room_for_a_failure() -> None:
    found = summarise([record(str(n), declined=1.0) for n in range(4)], ["declined"])["declined"]
    assert (found.mean, found.high) == (1, 1)
    assert found.low == pytest.approx(4 / (4 + 1.96**2), abs=1e-4)


def test_failed_samples_are_left_out_of_pairs_where_asked() -> None:
    a = {key: record(key, f1=0.5) for key in "abc"}
    b = {**a, "b": record("b", error="broke", f1=0.0)}
    for errors, n in (("zero", 3), ("exclude", 2)):
        difference = paired(a, b, "f1", errors=errors)
        assert difference is not None
        assert difference.estimate.n == n


ESTIMATES = {"ndcg@10": Estimate(0.72, 0.68, 0.76, 300)}


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("ndcg@10 >= 0.72", True),
        ("ndcg@10 > 0.72", False),
        ("ndcg@10>=.7", True),
        ("ndcg@10.low >= 0.70", False),
        ("ndcg@10.high <= 0.8", True),
        ("errors <= 2", True),
        ("errors < 2", False),
        ("mrr >= 0", False),
    ],
)
def test_a_gate_judges_a_mean_or_an_end_of_its_interval(text: str, passed: bool) -> None:
    (verdict,) = judge([parse_gate(text, ["ndcg@10", "mrr"])], ESTIMATES, errors=2)
    assert verdict.passed is passed
    assert verdict_line(verdict).startswith("PASS" if passed else "FAIL")


@pytest.mark.parametrize("text", ["", "ndcg@10", "ndcg@10 = 0.7", "ndcg@10 >= high", "ndcg@10.mid >= 0.5", "f1 >= 0.5"])
def test_a_gate_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_gate(text, ["ndcg@10"])
