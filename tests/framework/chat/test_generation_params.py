"""Values out of range are refused where parameters are made, ids where the vocabulary is known."""

from __future__ import annotations

from typing import Any

import pytest

from framework.errors import CallerError
from framework.models.base import MAX_IDS, GenerationParams
from framework.models.request import check_ids

NAN = float("nan")


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("max_tokens", [-1, 0, 10**12]),
        ("temperature", [NAN, float("inf"), -0.1, 2.1]),
        ("top_p", [NAN, 0, -1, 1.1, 2]),
        ("top_k", [-1, 2**31]),
        ("min_p", [NAN, -0.1, 1.1]),
        ("presence_penalty", [NAN, -2.1, 2.1]),
        ("frequency_penalty", [NAN, -2.1, 2.1]),
        ("repetition_penalty", [NAN, 0, -1, 0.09, 10.1, float("inf")]),
        ("logit_bias", [{-1: 1.0}, {1: NAN}, {1: 100.1}, {1: -100.1}, dict.fromkeys(range(MAX_IDS + 1), 1.0)]),
        ("stop_ids", [frozenset({-1}), frozenset(range(MAX_IDS + 1))]),
        ("seed", [2**63, -(2**63) - 1]),
        ("logprobs", [-1, 21]),
        ("stop", [("a", ""), "ab"]),
    ],
)
def test_a_value_out_of_range_is_named(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(CallerError, match=field) as refused:
            GenerationParams(**{field: value})
        assert refused.value.field == field


def test_the_limits_themselves_are_in_range() -> None:
    low = GenerationParams(1, 0, 1e-9, (), -(2**63), 0, 0, 0, -2, -2, 0.1, {0: -100.0}, frozenset({0}))
    high = GenerationParams(2**31 - 1, 2, 1, ("x",), 2**63 - 1, 20, 2**31 - 1, 1, 2, 2, 10, {10**6: 100.0})
    assert low != high
    assert hash(low) == hash(GenerationParams(1, 0, 1e-9, (), -(2**63), 0, 0, 0, -2, -2, 0.1, {5: 1.0}, frozenset({0})))


def test_ids_beyond_the_vocabulary_are_refused() -> None:
    check_ids(GenerationParams(logit_bias={9: 1.0}, stop_ids=frozenset({9})), 10)
    for params, field in (
        (GenerationParams(logit_bias={3: 1.0, 10: 1.0}), "logit_bias"),
        (GenerationParams(stop_ids=frozenset({10})), "stop_ids"),
    ):
        with pytest.raises(CallerError, match="token 10; this model has tokens 0 to 9") as refused:
            check_ids(params, 10)
        assert refused.value.field == field
