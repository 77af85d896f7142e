"""A model of transformers whose sequences can't share a batch: each runs alone, with transformers' own cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from framework.engine.architectures.pretrained import Pretrained
from framework.engine.forward import ForwardInputs


@dataclass(slots=True)
class _Kept:
    """One sequence: its blocks, of which none is used but all tell when it is gone; its cache; tokens in it."""

    blocks: list[int]
    cache: Any
    length: int


class SeparateDecoder:
    """A model that computes its sequences one after another (a `Decoder`).

    A sequence is known by its first block. Its cache is dropped when one of its blocks is another's, which is when the
    engine has forgotten it, so that never more is kept than blocks were allocated for. Blocks are never shared.
    """

    shares_prefixes = False

    def __init__(self, model: Pretrained, *, block_size: int) -> None:
        self.model = model
        self.device, self.vocabulary, self.context_length = model.device, model.vocabulary, model.context_length
        self.weight_bytes, self.linears = model.weight_bytes, model.linears
        self.set_adapter = model.set_adapter
        self._block_size = block_size
        self._sequences: dict[int, _Kept] = {}
        self._owners: dict[int, int] = {}  # first block of the sequence that each block belongs to
        self.block_bytes = self._bytes_per_token() * block_size

    def allocate(self, blocks: int) -> None:
        self._sequences.clear()
        self._owners.clear()

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        assert not pairs, "blocks of this decoder are never shared, so never copied"

    @torch.inference_mode()
    def forward(self, inputs: ForwardInputs) -> torch.Tensor:
        found, size = [], self._block_size
        for row, (start, end) in enumerate(zip(inputs.starts[:-1].tolist(), inputs.starts[1:].tolist(), strict=True)):
            first, last = int(inputs.positions[start]), int(inputs.positions[end - 1])
            kept = self._claimed(inputs.blocks[row, : last // size + 1].tolist(), first)
            tokens = torch.from_numpy(inputs.tokens[start:end].astype("int64")).to(self.device)
            with self.model.adapting(_alone(inputs, row)):
                logits, kept.cache = self.model.continued(tokens, kept.cache)
            kept.length = last + 1
            chosen = inputs.sampled[(inputs.sampled >= start) & (inputs.sampled < end)] - start
            found.append(logits[torch.from_numpy(chosen.astype("int64")).to(self.device)])
        return torch.cat(found)

    def _claimed(self, blocks: list[int], position: int) -> _Kept:
        """The sequence with these blocks, new if it begins; whoever had one of them before is dropped."""
        for block in blocks:
            owner = self._owners.get(block)
            if owner is not None and (owner != blocks[0] or position == 0):
                self._drop(owner)
        kept = self._sequences.setdefault(blocks[0], _Kept([], None, 0))
        assert kept.length == position, "a sequence of this decoder is computed from its beginning, token after token"
        kept.blocks = blocks
        self._owners.update(dict.fromkeys(blocks, blocks[0]))
        return kept

    def _drop(self, owner: int) -> None:
        for block in self._sequences.pop(owner).blocks:
            del self._owners[block]

    @torch.inference_mode()
    def _bytes_per_token(self) -> int:
        """What one token takes in transformers' cache, measured on a sequence of a few."""
        tokens = torch.arange(8, device=self.device)
        _, cache = self.model.continued(tokens, None)
        layers = getattr(cache, "layers", [])
        tensors = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
        total = sum(int(tensor.nbytes) for tensor in tensors if tensor is not None)
        return max(1, total // len(tokens))


def _alone(inputs: ForwardInputs, row: int) -> ForwardInputs:
    """The step with one of its sequences, all of whose tokens reach the head."""
    start, end = inputs.starts[row], inputs.starts[row + 1]
    starts = inputs.starts[row : row + 2] - start
    return ForwardInputs(
        tokens=inputs.tokens[start:end],
        positions=inputs.positions[start:end],
        starts=starts,
        blocks=inputs.blocks[row : row + 1],
        slots=inputs.slots[row : row + 1],
        sampled=(inputs.positions[start:end] - inputs.positions[start]),
    )
