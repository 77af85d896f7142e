"""Batches of similar length under a budget of padded tokens. Lengths only, no tensors."""

from __future__ import annotations

from collections.abc import Sequence


def token_budget_batches(lengths: Sequence[int], budget: int, max_items: int = 256) -> list[list[int]]:
    """Split items into batches whose padded size (items × longest) stays within `budget`.

    Longest first, so that padding is small and the largest allocation is made once, at the start. An item longer than
    the budget has a batch of its own.

    Args:
        lengths: tokens of each item.
        budget: most tokens in a batch, padding included.
        max_items: most items in a batch.

    Returns:
        Positions in `lengths`, each exactly once.
    """
    assert budget > 0, budget
    assert max_items > 0, max_items
    batches: list[list[int]] = []
    longest = 0
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * longest <= budget and len(batches[-1]) < max_items:
            batches[-1].append(item)
        else:
            batches.append([item])
            longest = lengths[item]
    return batches
