"""Batches under a token budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from framework.encoders.batcher import token_budget_batches

LENGTHS = st.lists(st.integers(0, 300), max_size=200)
BUDGETS = st.integers(1, 2000)


@given(LENGTHS, BUDGETS, st.integers(1, 50))
def test_every_item_is_in_exactly_one_batch(lengths: list[int], budget: int, max_items: int) -> None:
    batches = token_budget_batches(lengths, budget, max_items)
    assert sorted(item for batch in batches for item in batch) == list(range(len(lengths)))


@given(LENGTHS, BUDGETS, st.integers(1, 50))
def test_no_batch_is_over_budget_unless_one_item_is(lengths: list[int], budget: int, max_items: int) -> None:
    for batch in token_budget_batches(lengths, budget, max_items):
        assert 1 <= len(batch) <= max_items
        assert len(batch) == 1 or len(batch) * max(lengths[item] for item in batch) <= budget


@given(LENGTHS, BUDGETS)
def test_longest_come_first_and_ties_keep_the_callers_order(lengths: list[int], budget: int) -> None:
    order = [item for batch in token_budget_batches(lengths, budget) for item in batch]
    assert order == sorted(order, key=lambda item: (-lengths[item], item))


@given(LENGTHS, BUDGETS)
def test_a_batch_ends_only_where_the_next_item_would_not_fit(lengths: list[int], budget: int) -> None:
    batches = token_budget_batches(lengths, budget, 10_000)
    for batch in batches[:-1]:
        assert (len(batch) + 1) * lengths[batch[0]] > budget


def test_nothing_makes_no_batch() -> None:
    assert token_budget_batches([], 100) == []
