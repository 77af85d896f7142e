"""Attention over paged keys and values equals attention written out, for every plan and every model's extras."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.engine.attention import Extras, Plan, attend, weigh
from framework.engine.forward import ForwardInputs
from framework.engine.kv_cache import LayerShape, PagedCache

BLOCK, HEADS, KV_HEADS, WIDTH = 4, 4, 2, 16
CPU = torch.device("cpu")


def written_out(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, first: int, window: int, extras: Extras
) -> torch.Tensor:
    """Queries (n, heads, width) at positions from `first` over keys (L, kv heads, width), one number at a time."""
    result = torch.zeros(*queries.shape[:2], values.shape[-1])
    for row in range(len(queries)):
        seen = range(max(0, first + row - window + 1) if window else 0, first + row + 1)
        for head in range(HEADS):
            group = head * KV_HEADS // HEADS
            scores = keys[seen, group] @ queries[row, head] * (extras.scale or WIDTH**-0.5)
            if extras.softcap is not None:
                scores = extras.softcap * torch.tanh(scores / extras.softcap)
            sink = [] if extras.sinks is None else [extras.sinks[head][None]]
            weights = torch.softmax(torch.cat([scores, *sink]), 0)[: len(seen)]
            result[row, head] = weights @ values[seen, group]
    return result


SINKS = torch.tensor([0.5, -1.0, 2.0, 0.0])


@pytest.mark.parametrize(
    "extras", [Extras(), Extras(scale=0.1), Extras(softcap=1.5), Extras(sinks=SINKS), Extras(0.3, 2.0, SINKS)]
)
@pytest.mark.parametrize("deterministic", [False, True])
def test_any_batch_over_scattered_blocks_equals_attention_written_out(deterministic: bool, extras: Extras) -> None:
    @settings(max_examples=15, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(0, 30), st.integers(1, 20)), min_size=1, max_size=5),
        st.sampled_from([0, 1, 5, 16, 100]),
        st.integers(0, 100),
    )
    def check(sequences: list[tuple[int, int]], window: int, seed: int) -> None:
        torch.manual_seed(seed)
        cache = PagedCache([LayerShape(KV_HEADS, WIDTH, 8)], BLOCK, torch.float32, CPU)
        cache.allocate(80)
        for pool in cache.pools[0]:
            pool.data.fill_(torch.nan)  # whatever is not a sequence's own must never be touched
        tables = np.random.default_rng(seed).permutation(80).reshape(5, 16).astype(np.int32)[: len(sequences)]
        spans = [np.arange(first, first + count, dtype=np.int32) for first, count in sequences]
        starts = np.cumsum([0, *map(len, spans)], dtype=np.int32)
        positions = np.concatenate(spans)
        slots = np.full(len(spans), -1, dtype=np.int32)
        plan = Plan(
            ForwardInputs(positions, positions, starts, tables, slots, positions[:0]), BLOCK, CPU, deterministic
        )
        queries = torch.randn(len(positions), HEADS, WIDTH)
        everything = [
            (torch.randn(first + count, KV_HEADS, WIDTH), torch.randn(first + count, KV_HEADS, 8))
            for first, count in sequences
        ]
        for table, (keys, values) in zip(tables, everything, strict=True):
            places = torch.tensor([int(table[p // BLOCK]) * BLOCK + p % BLOCK for p in range(len(keys))])
            cache.write(0, places, keys, values)
        found = attend(queries, cache, 0, plan.pieces(window), extras)
        for (first, _), (keys, values), start, end in zip(sequences, everything, starts, starts[1:], strict=False):
            expected = written_out(queries[start:end], keys, values, first, window, extras)
            torch.testing.assert_close(found[start:end], expected, rtol=1e-4, atol=1e-5)

    check()


@pytest.mark.parametrize("count", [1, 3, 9])
def test_without_a_mask_the_last_key_is_the_last_query_s_own(count: int) -> None:
    """The form that CUDA's kernels are called in."""
    queries = torch.randn(1, HEADS, count, WIDTH)
    keys, values = torch.randn(1, KV_HEADS, 9, WIDTH), torch.randn(1, KV_HEADS, 9, 8)
    expected = written_out(
        queries[0].transpose(0, 1), keys[0].transpose(0, 1), values[0].transpose(0, 1), 9 - count, 0, Extras()
    )
    for extras in (Extras(), Extras(softcap=1e9)):
        found = weigh(queries, keys, values, None, extras)[0].transpose(0, 1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_decodes_of_like_lengths_are_one_call_and_far_ones_their_own() -> None:
    positions = np.array([99, 90, 80, 9, 8, 0], dtype=np.int32)
    tables = np.arange(6 * 25, dtype=np.int32).reshape(6, 25)
    starts, slots = np.arange(7, dtype=np.int32), np.full(6, -1, dtype=np.int32)
    plan = Plan(ForwardInputs(positions, positions, starts, tables, slots, starts[:0]), BLOCK, CPU, False)
    assert [tuple(piece.keys.shape) for piece in plan.pieces(0)] == [(3, 100), (2, 10), (1, 1)]
    assert [tuple(piece.keys.shape) for piece in plan.pieces(7)] == [(5, 7), (1, 1)]
    assert plan.pieces(7)[0].mask is None
