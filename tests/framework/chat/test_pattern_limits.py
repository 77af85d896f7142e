"""Patterns and choices that would take a mask's worker long are refused by their size, before they are compiled."""

from __future__ import annotations

import time

import pytest

from framework.errors import CallerError
from framework.models.base import Choice, Regex
from framework.models.constraints import constraint_grammar, written_out


@pytest.mark.parametrize(
    ("pattern", "size"),
    [
        ("abc", 3),
        ("a{5}", 5),
        ("a{5,90}b", 6),
        ("a{0,90}", 1),
        ("(ab|c{7}){10}", 70),
        ("((ab){3}x){2}", 14),
        (r"\{\({3}[a{9}]{2}", 6),
        ("(a{1000}){1000}", 1_000_000),
        ("a{99999999}", 99_999_999),
        ("[" * 40_000, 1),
        ("(" * 40_000, 0),
        (")" * 40_000, 40_000),
    ],
)
def test_how_long_a_pattern_is_with_its_repetitions_written_out(pattern: str, size: int) -> None:
    assert written_out(pattern) == size


@pytest.mark.parametrize(
    "constraint",
    [
        Regex("(a{1000}){1000}"),
        Regex("b|(c(a{900}){1000})?"),
        Regex("x" * 1_000_000),
        Regex("[" * 40_000),
        Choice(("x" * 100_000,)),
        Choice(tuple("x" * 1000 + str(number) for number in range(1024))),
    ],
)
def test_what_would_hold_up_a_batch_is_refused_at_once(constraint: Regex | Choice) -> None:
    began = time.process_time()
    with pytest.raises(CallerError) as refused:
        constraint_grammar(constraint, "structured_outputs")
    assert refused.value.field == "structured_outputs"
    assert time.process_time() - began < 1
