"""Keys and values of all sequences in blocks of a fixed number of tokens, a pool for each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one token takes in one layer."""

    kv_heads: int
    key_dim: int
    value_dim: int


class Pool:
    """One layer's keys, or its values: (tokens, heads, width), rounded to int8 with a scale per token and head, or not.

    Zeros at first: a masked place has the weight 0, and 0 times what memory happened to hold may be NaN.
    """

    def __init__(self, tokens: int, heads: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.data = torch.zeros(tokens, heads, width, dtype=dtype, device=device)
        rounded = dtype == torch.int8
        self.scale = torch.zeros(tokens, heads, 1, dtype=torch.float32, device=device) if rounded else None

    def write(self, places: torch.Tensor, x: torch.Tensor) -> None:
        """Keep x (T, heads, width) at places, int64 (T,)."""
        if self.scale is None:
            self.data.index_copy_(0, places, x.to(self.data.dtype))
            return
        exact = x.float()
        step = exact.abs().amax(dim=-1, keepdim=True) / 127.0
        step.masked_fill_(step == 0, 1.0)
        self.data.index_copy_(0, places, (exact / step).round_().to(torch.int8))
        self.scale.index_copy_(0, places, step)

    def read(self, places: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """What is at places, int64 (rows, length): (rows, heads, length, width), a view that is contiguous in width."""
        flat = places.reshape(-1)
        found = self.data.index_select(0, flat)
        exact = found.to(dtype) if self.scale is None else (found * self.scale.index_select(0, flat)).to(dtype)
        return exact.view(*places.shape, *exact.shape[1:]).transpose(1, 2)

    def copy(self, source: slice, target: slice) -> None:
        """Overwrite the tokens of one block with another's."""
        for tensor in (self.data, self.scale):
            if tensor is not None:
                tensor[target] = tensor[source]


class PagedCache:
    """The pools of all layers. `allocate` makes them.

    Args:
        dtype: float32, bfloat16, float16, or int8.
    """

    def __init__(self, layers: Sequence[LayerShape], block_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.layers = layers
        self.block_size = block_size
        self.dtype = dtype
        self.device = device
        self.pools: list[tuple[Pool, Pool]] = []

    @property
    def block_bytes(self) -> int:
        """Memory that one block takes, all layers together."""
        size = self.dtype.itemsize
        scales = 8 if self.dtype == torch.int8 else 0  # one float32 for keys, one for values
        return self.block_size * sum(
            shape.kv_heads * ((shape.key_dim + shape.value_dim) * size + scales) for shape in self.layers
        )

    def allocate(self, blocks: int) -> None:
        """Make room for this many blocks; whatever was cached is gone."""
        self.pools = []  # the old ones' memory first
        tokens = blocks * self.block_size
        self.pools = [
            (
                Pool(tokens, shape.kv_heads, shape.key_dim, self.dtype, self.device),
                Pool(tokens, shape.kv_heads, shape.value_dim, self.dtype, self.device),
            )
            for shape in self.layers
        ]

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks (from, to), one pair after another."""
        size = self.block_size
        for source, target in pairs:
            for pools in self.pools:
                for pool in pools:
                    pool.copy(slice(source * size, source * size + size), slice(target * size, target * size + size))

    def write(self, layer: int, places: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keep a step's keys (T, kv heads, key_dim) and values at places, int64 (T,)."""
        self.pools[layer][0].write(places, keys)
        self.pools[layer][1].write(places, values)

    def read(self, layer: int, places: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values at places, int64 (rows, length), each (rows, kv heads, length, width)."""
        keys, values = self.pools[layer]
        return keys.read(places, dtype), values.read(places, dtype)
