"""From a batch of sequences to logits: what was scheduled, as the arrays that decoders take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from framework.engine.forward import Decoder, ForwardInputs

if TYPE_CHECKING:
    import torch

    from framework.engine.adapter import Adapter
    from framework.engine.lora import AdapterCache
    from framework.engine.scheduler import Batch


class ModelRunner:
    """Runs batches on a decoder.

    Args:
        adapters: where the weights of adapters come from; None: no batch has any.
    """

    def __init__(self, decoder: Decoder, block_size: int, adapters: AdapterCache | None = None) -> None:
        self.decoder = decoder
        self.block_size = block_size
        self._adapters = adapters

    def load(self, slot: int, adapter: Adapter) -> None:
        """Make an adapter resident in a slot.

        Raises:
            CallerError: its files are damaged, or don't fit the model.
        """
        assert self._adapters is not None, "an engine with slots for adapters needs an AdapterCache"
        self.decoder.set_adapter(slot, self._adapters.get(adapter, self.decoder.linears))

    def forward(self, batch: Batch) -> torch.Tensor:
        """Copy blocks, compute the scheduled tokens.

        Returns:
            Logits, float32 (number of batch.sampling, vocabulary), in their order; valid until the next call.
        """
        if batch.copies:
            self.decoder.copy_blocks(batch.copies)
        return self.decoder.forward(self.inputs(batch))

    def inputs(self, batch: Batch) -> ForwardInputs:
        """The batch as arrays."""
        scheduled = batch.scheduled
        counts = np.fromiter((item.count for item in scheduled), np.int32, len(scheduled))
        computed = np.fromiter((item.sequence.computed for item in scheduled), np.int32, len(scheduled))
        starts = np.zeros(len(scheduled) + 1, dtype=np.int32)
        np.cumsum(counts, out=starts[1:])
        tokens: list[int] = []
        for item in scheduled:
            sequence = item.sequence
            tokens += sequence.tokens[sequence.computed : sequence.computed + item.count]
        offsets = np.arange(starts[-1], dtype=np.int32) - np.repeat(starts[:-1], counts)
        ends = {item.sequence.number: end - 1 for item, end in zip(scheduled, starts[1:].tolist(), strict=True)}
        return ForwardInputs(
            tokens=np.array(tokens, dtype=np.int32),
            positions=np.repeat(computed, counts) + offsets,
            starts=starts,
            blocks=self._tables(batch),
            slots=np.fromiter((item.sequence.slot for item in scheduled), np.int32, len(scheduled)),
            sampled=np.array([ends[item.sequence.number] for item in batch.sampling], dtype=np.int32),
        )

    def _tables(self, batch: Batch) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
        """Block tables side by side, as wide as the longest that this step reaches into."""
        size = self.block_size
        widths = [-(-(item.sequence.computed + item.count) // size) for item in batch.scheduled]
        tables = np.zeros((len(widths), max(widths, default=1)), dtype=np.int32)
        for row, item, width in zip(tables, batch.scheduled, widths, strict=True):
            row[:width] = item.sequence.blocks[:width]
        return tables
