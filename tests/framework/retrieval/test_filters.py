from __future__ import annotations

import math

import pytest

from framework.errors import CallerError
from framework.retrieval.filters import Eq, Range, matches, parse_filter


def test_no_expression_is_no_filter() -> None:
    assert parse_filter(()) is None


@pytest.mark.parametrize(
    ("expression", "payload", "passes"),
    [
        ("lang=en", {"lang": "en"}, True),
        ("lang=en", {"lang": "EN"}, False),
        ("year=2024", {"year": 2024}, True),
        ("year=2024", {"year": "2024"}, True),
        ("year=1", {"year": True}, False),
        ("share=0.5", {"share": 0.5}, True),
        ("draft=true", {"draft": True}, True),
        ("draft=true", {"draft": 1}, False),
        ("a=b=c", {"a": "b=c"}, True),
        ("empty=", {"empty": ""}, True),
        ("$where=1; DROP", {"$where": "1; DROP"}, True),
    ],
)
def test_an_expression_means_the_text_or_the_value_it_reads_as(expression: str, payload: dict, passes: bool) -> None:
    filter = parse_filter((expression,))
    assert filter is not None
    assert matches(filter, payload) is passes


@pytest.mark.parametrize("expression", ["nothing", "=value", "k=" + "x" * 70_000])
def test_an_expression_that_is_none_is_refused(expression: str) -> None:
    with pytest.raises(CallerError):
        parse_filter((expression,))


def test_all_expressions_must_hold() -> None:
    filter = parse_filter(("a=1", "b=2"))
    assert filter is not None
    assert matches(filter, {"a": 1, "b": 2})
    assert not matches(filter, {"a": 1, "b": 3})


def test_a_range_without_bounds_asks_for_a_number() -> None:
    assert [matches(Range("k"), {"k": value}) for value in (1, 1.5, True, "1")] == [True, True, False, False]


def test_numbers_beyond_a_float_compare_as_infinite() -> None:
    assert not matches(Range("k", at_least=10**400), {"k": 1e308})
    assert matches(Range("k", at_most=10**400), {"k": 1e308})
    assert not matches(Eq("k", 10**400), {"k": math.inf})


def test_a_bound_that_is_no_number_is_refused() -> None:
    with pytest.raises(CallerError, match="NaN"):
        Range("k", at_least=math.nan)
