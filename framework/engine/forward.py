"""What a forward pass is given, and what every decoder does: the line between bookkeeping and tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    from framework.engine.lora import AdapterWeights


@dataclass(frozen=True, slots=True)
class ForwardInputs:
    """One step's tokens of all its sequences, one after another, without padding (T tokens of B sequences).

    Attributes:
        tokens: int32 (T,), ids.
        positions: int32 (T,), place of each in its sequence, from 0.
        starts: int32 (B + 1,): tokens starts[b]:starts[b + 1] are sequence b's; a sequence's are consecutive positions.
        blocks: int32 (B, most blocks): block tables, padded with 0. Position p of sequence b has its keys and values in
            block blocks[b, p // block_size] at offset p % block_size.
        slots: int32 (B,): slot of each sequence's adapter; -1: none.
        sampled: int32 (S,): places in `tokens` whose logits are wanted.
    """

    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    starts: NDArray[np.int32]
    blocks: NDArray[np.int32]
    slots: NDArray[np.int32]
    sampled: NDArray[np.int32]

    @property
    def lengths(self) -> NDArray[np.int32]:
        """int32 (B,): tokens of each sequence whose keys and values exist after this step."""
        return self.positions[self.starts[1:] - 1] + 1


def sampled_alone(inputs: ForwardInputs) -> ForwardInputs:
    """The sampled tokens as a step of their own: the rows that the head sees."""
    owners = np.searchsorted(inputs.starts, inputs.sampled, side="right") - 1
    starts = np.arange(len(owners) + 1, dtype=np.int32)
    return ForwardInputs(
        tokens=inputs.tokens[inputs.sampled],
        positions=inputs.positions[inputs.sampled],
        starts=starts,
        blocks=inputs.blocks[owners],
        slots=inputs.slots[owners],
        sampled=starts[:-1],
    )


class Decoder(Protocol):
    """A decoder with a paged key-value cache, on one device. Not thread-safe: one engine's thread calls it."""

    @property
    def vocabulary(self) -> int:
        """Width of the logits."""
        ...

    @property
    def context_length(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def block_bytes(self) -> int:
        """Memory that one block takes, all layers together."""
        ...

    @property
    def weight_bytes(self) -> int: ...

    @property
    def linears(self) -> Mapping[str, tuple[int, int]]:
        """(out, in) of each linear layer that an adapter may change, by its full name."""
        ...

    @property
    def shares_prefixes(self) -> bool:
        """Blocks may be shared by sequences; otherwise the prefix cache has to be off."""
        ...

    def allocate(self, blocks: int) -> None:
        """Make room for this many blocks; whatever was cached is gone."""
        ...

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks (from, to), before the forward pass that writes into the copies."""
        ...

    def set_adapter(self, slot: int, weights: AdapterWeights | None) -> None:
        """Make an adapter resident in a slot, instead of what was there; None empties it.

        Raises:
            CallerError: the adapter doesn't fit this model.
        """
        ...

    def forward(self, inputs: ForwardInputs) -> torch.Tensor:
        """Write keys and values of all tokens into the cache, and give the logits, float32 (S, vocabulary).

        They stay valid until the next call.
        """
        ...
