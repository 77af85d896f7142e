"""Attention of a flat batch over paged keys and values.

A step is planned once, in numpy, and its plan serves all layers. What is computed together is a piece:

- a chunk: several tokens of one sequence, against its keys up to the last of them;
- rows: single tokens of several sequences with nearly as many keys each, gathered side by side.

Keys beyond a sequence's length, or before its sliding window, are never gathered.

The deterministic plan has rows only, each token against its keys up to the next multiple of 16 positions: what is
computed for a token depends on its position alone, not on how its prompt was cut into chunks or what else is in the
batch. Its products have rows in eights, zeros filling up: each thread of the CPU's kernel has scratch memory for so
many rows, and a matrix product may add in another order where memory begins off a multiple of 64 bytes. Long prompts
take two to three times the time of chunks, decodes a third more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray

from framework.engine.forward import ForwardInputs
from framework.engine.kv_cache import PagedCache

TILE = 16  # positions to which the deterministic plan rounds
EIGHT = 8  # rows to which its products are filled up
CLOSE = 0.75  # rows with at least this share of the longest one's keys are gathered together

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Extras:
    """What some models add to attention.

    Attributes:
        scale: of the scores; None: 1 / sqrt(width).
        softcap: scores are bent into -softcap..softcap by a tanh (Gemma 2); None: not.
        sinks: (heads,), the score of a place that takes weight and gives nothing (GPT-OSS); None: none.
    """

    scale: float | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None


PLAIN = Extras()


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens whose attention is one call.

    Attributes:
        rows: which of the batch.
        keys: places of their keys in the cache, int64: (1, L) for all of them, or (rows, L) for each its own.
        mask: what each sees, bool (rows, L); None: everything, or everything up to itself in a chunk.
        chunk: consecutive tokens of one sequence, the last at the last key; otherwise each stands alone.
        steady: no bit of a token's result may depend on the others.
    """

    rows: slice | torch.Tensor
    keys: torch.Tensor
    mask: torch.Tensor | None
    chunk: bool
    steady: bool


@dataclass(frozen=True, slots=True)
class _Outline:
    """A piece before it is on the device: row i sees its keys low[i] <= j < high[i]; empty: no mask is needed."""

    rows: slice | Indices
    keys: Indices
    low: Indices
    high: Indices
    chunk: bool


class Plan:
    """One step's places and pieces on the device.

    Attributes:
        tokens, positions, places: int64 (T,); places are where the cache takes each token's keys and values.
        sampled: int64 (S,).
    """

    def __init__(self, inputs: ForwardInputs, block_size: int, device: torch.device, deterministic: bool) -> None:
        self._inputs = inputs
        self._block_size = block_size
        self._device = device
        self._deterministic = deterministic
        self._pieces: dict[int, list[Piece]] = {}
        self._owners = np.repeat(np.arange(len(inputs.slots)), np.diff(inputs.starts))
        places = self._places(self._owners, inputs.positions.astype(np.int64))
        flat: list[NDArray[Any]] = [inputs.tokens, inputs.positions, places, inputs.sampled]
        self.tokens, self.positions, self.places, self.sampled = upload(flat, device)

    def pieces(self, window: int) -> list[Piece]:
        """How attention is cut, for layers with this sliding window (0: none)."""
        if window not in self._pieces:
            outlines = self._aligned(window) if self._deterministic else self._chunks(window) + self._rows(window)
            self._pieces[window] = _on_device(outlines, self._device, self._deterministic)
        return self._pieces[window]

    def _places(self, sequence: Indices | np.integer[Any], positions: Indices) -> Indices:
        blocks, size = self._inputs.blocks, self._block_size
        result: Indices = blocks[sequence, positions // size].astype(np.int64) * size + positions % size
        return result

    def _chunks(self, window: int) -> list[_Outline]:
        starts, positions = self._inputs.starts, self._inputs.positions
        result = []
        for sequence in np.flatnonzero(np.diff(starts) > 1):
            start, stop = int(starts[sequence]), int(starts[sequence + 1])
            seen = positions[start:stop].astype(np.int64)
            first = max(0, int(seen[0]) - window + 1) if window else 0
            keys = self._places(sequence, np.arange(first, int(seen[-1]) + 1))[None]
            low, high = _sight(seen, window, first)
            # Without a mask the kernels skip the keys after each token by themselves; a CPU's only if no key is older.
            causal = not low.any() and (len(seen) == keys.shape[1] or self._device.type == "cuda")
            low, high = (low[:0], high[:0]) if causal else (low, high)
            result.append(_Outline(slice(start, stop), keys, low, high, chunk=True))
        return result

    def _rows(self, window: int) -> list[_Outline]:
        starts = self._inputs.starts
        sequences = np.flatnonzero(np.diff(starts) == 1)
        positions = self._inputs.positions[starts[sequences]].astype(np.int64)
        first = np.maximum(0, positions - window + 1) if window else np.zeros_like(positions)
        counts = positions + 1 - first
        order, result = np.argsort(-counts, kind="stable"), []
        while len(order):
            longest = int(counts[order[0]])
            near = int(np.count_nonzero(counts[order] >= CLOSE * longest))
            group, order = order[:near], order[near:]
            reach = np.minimum(first[group, None] + np.arange(longest), positions[group, None])
            keys = self._places(sequences[group, None], reach)
            high = counts[group] if counts[group[-1]] < longest else counts[:0]
            rows = starts[sequences[group]].astype(np.int64)
            result.append(_Outline(rows, keys, np.zeros_like(high), high, chunk=False))
        return result

    def _aligned(self, window: int) -> list[_Outline]:
        positions = self._inputs.positions.astype(np.int64)
        first = np.maximum(0, positions - window + 1) // TILE * TILE if window else np.zeros_like(positions)
        count = (positions // TILE + 1) * TILE - first
        changes = np.flatnonzero(np.diff(self._owners) | np.diff(first) | np.diff(count)) + 1
        runs = np.split(np.arange(len(positions)), changes)
        alone: dict[int, list[int]] = {}
        result = []
        for run in runs:
            if len(run) == 1:
                alone.setdefault(int(count[run[0]]), []).append(int(run[0]))
            else:
                result.append(self._outline(run, run[-1:], first, int(count[run[0]]), window))
        for length, members in alone.items():
            rows = np.array(members)
            result.append(self._outline(rows, rows, first, length, window))
        return result

    def _outline(self, rows: Indices, owners: Indices, first: Indices, length: int, window: int) -> _Outline:
        """Rows with `length` keys each; `owners` are the tokens whose keys are gathered, their last one filling up."""
        positions = self._inputs.positions.astype(np.int64)
        reach = np.minimum(first[owners, None] + np.arange(length), positions[owners, None])
        keys = self._places(self._owners[owners, None], reach)
        low, high = _sight(positions[rows], window, first[rows])
        return _Outline(rows, keys, low, high, chunk=False)


def _sight(positions: Indices, window: int, first: Indices | int) -> tuple[Indices, Indices]:
    """Which of the keys from `first` on each position sees: low <= j < high."""
    high = positions + 1 - first
    return (np.maximum(0, high - window) if window else np.zeros_like(high)), high


def upload(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[torch.Tensor]:
    """Arrays of indices as int64 tensors on the device, by one transfer that the host needn't wait for."""
    flat = np.concatenate([array.reshape(-1).astype(np.int64) for array in arrays])
    host = torch.from_numpy(flat)
    moved = host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)
    parts = torch.split(moved, [array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def _on_device(outlines: Sequence[_Outline], device: torch.device, steady: bool) -> list[Piece]:
    if not outlines:
        return []
    none = np.zeros(0, dtype=np.int64)
    arrays = [
        array
        for piece in outlines
        for array in (none if isinstance(piece.rows, slice) else piece.rows, piece.keys, piece.low, piece.high)
    ]
    moved = iter(upload(arrays, device))
    result = []
    for piece in outlines:
        rows, keys, low, high = (next(moved) for _ in range(4))
        key = torch.arange(keys.shape[1], device=device)
        mask = (key >= low[:, None]) & (key < high[:, None]) if len(piece.high) else None
        result.append(Piece(piece.rows if isinstance(piece.rows, slice) else rows, keys, mask, piece.chunk, steady))
    return result


def attend(
    queries: torch.Tensor, cache: PagedCache, layer: int, pieces: Sequence[Piece], extras: Extras = PLAIN
) -> torch.Tensor:
    """Attention of queries (T, heads, width) over what the cache holds, this step's keys among it.

    Returns:
        (T, heads, width of the values).
    """
    tokens, heads = queries.shape[:2]
    result = queries.new_empty(tokens, heads, cache.layers[layer].value_dim)
    for piece in pieces:
        keys, values = cache.read(layer, piece.keys, queries.dtype)
        rows = queries[piece.rows]
        if piece.chunk:
            mask = None if piece.mask is None else piece.mask[None, None]
            found = weigh(rows.transpose(0, 1)[None], keys, values, mask, extras)
            result[piece.rows] = found[0].transpose(0, 1)
            continue
        if len(keys) < len(rows):
            keys, values = (x.expand(len(rows), *x.shape[1:]) for x in (keys, values))
        mask = None if piece.mask is None else piece.mask[:, None, None]
        result[piece.rows] = weigh(rows[:, :, None], keys, values, mask, extras, piece.steady).squeeze(2)
    return result


def weigh(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    extras: Extras = PLAIN,
    steady: bool = False,
) -> torch.Tensor:
    """Scaled dot-product attention with grouped heads.

    Args:
        queries: (B, heads, n, width).
        keys, values: (B, kv heads, L, width).
        mask: bool, broadcastable to (B, 1, n, L); None: the last n keys are the queries' own, and causal.
        steady: with n = 1, give each of the batch the same bits in any batch.

    Returns:
        (B, heads, n, width of the values).
    """
    if extras.softcap is not None or extras.sinks is not None:
        return _explicit(queries, keys, values, mask, extras)
    batch, heads, count, width = queries.shape
    kv_heads, length = keys.shape[1:3]
    if count == 1:  # the queries that share a head of keys are so many rows of one product
        packed = queries.reshape(batch, kv_heads, -1, width)
        rows = packed.shape[2]
        packed = functional.pad(packed, (0, 0, 0, -rows % EIGHT)) if steady else packed
        found = functional.scaled_dot_product_attention(packed, keys, values, mask, scale=extras.scale)
        return found[:, :, :rows].reshape(batch, heads, 1, -1)
    grouped = heads != kv_heads
    if mask is not None and grouped and queries.is_cuda:  # the fast kernels take a mask, or groups, not both
        keys, values = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (keys, values))
        grouped = False
    attention = functional.scaled_dot_product_attention
    if mask is None and count < length:  # flash attention's own alignment to the last key
        from torch.nn.attention.bias import causal_lower_right  # a second to import, and needed on CUDA only

        bias = causal_lower_right(count, length)
        return attention(queries, keys, values, bias, scale=extras.scale, enable_gqa=grouped)
    causal = mask is None
    return attention(queries, keys, values, mask, is_causal=causal, scale=extras.scale, enable_gqa=grouped)


def _explicit(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, extras: Extras
) -> torch.Tensor:
    """`weigh` with scores in the open, for what the fused kernels can't do."""
    batch, heads, count, width = queries.shape
    kv_heads, length = keys.shape[1:3]
    split = queries.reshape(batch, kv_heads, -1, count, width)
    scores = (split @ keys[:, :, None].transpose(-1, -2)).float() * (extras.scale or width**-0.5)
    if extras.softcap is not None:
        scores = torch.tanh(scores / extras.softcap) * extras.softcap
    if mask is None and count > 1:
        mask = torch.ones(count, length, dtype=torch.bool, device=queries.device).tril(length - count)[None, None]
    if mask is not None:
        scores = scores.masked_fill(~mask[:, :, None], -torch.inf)
    if extras.sinks is not None:
        sinks = extras.sinks.float().view(1, kv_heads, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., :length].to(values.dtype)
    return (weights @ values[:, :, None]).reshape(batch, heads, count, -1)
