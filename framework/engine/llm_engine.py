"""The engine: requests in, tokens out, one step at a time. One thread calls it."""

from __future__ import annotations

import logging
from collections.abc import Sequence as Row
from typing import TYPE_CHECKING, Protocol

from framework.engine.adapter import Adapter
from framework.engine.masks import Mask, MaskWorkers
from framework.engine.scheduler import Batch, EngineLimits, Event, Scheduler
from framework.engine.sequence import FinishReason, Request, SampledToken, Sequence

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("lectern.engine")


class Runner(Protocol):
    """Turns a batch into tensors and runs the model: `ModelRunner`."""

    def load(self, slot: int, adapter: Adapter) -> None:
        """Make an adapter resident in a slot.

        Raises:
            CallerError: it can't be read, or doesn't fit the model.
        """
        ...

    def forward(self, batch: Batch) -> torch.Tensor:
        """Make the batch's copies and compute its tokens; logits (len(batch.sampling), vocabulary size), float32."""
        ...


class Chooser(Protocol):
    """Chooses tokens by logits: `Sampler`."""

    def sample(
        self, logits: torch.Tensor, sequences: Row[Sequence], masks: Row[Mask]
    ) -> list[SampledToken | Exception]:
        """A token for each sequence, or what ends its request; a mask that is an exception is one such thing."""
        ...


class LLMEngine:
    """A model with its scheduler. Close it when it is not needed any more.

    Args:
        runner: the model.
        sampler: chooses tokens.
        limits: what it may hold at once.
    """

    def __init__(self, runner: Runner, sampler: Chooser, limits: EngineLimits) -> None:
        self.limits = limits
        self.scheduler = Scheduler(limits)
        self._runner = runner
        self._sampler = sampler
        self._masks = MaskWorkers()

    @property
    def has_work(self) -> bool:
        """A step would compute something; sequences that are paused need nothing."""
        return self.scheduler.has_work

    @property
    def blocks_used(self) -> int:
        """Blocks that running sequences hold."""
        return self.limits.blocks - self.scheduler.blocks.available

    @property
    def blocks_total(self) -> int:
        return self.limits.blocks

    def add(self, request: Request) -> Sequence:
        """Take a request in; its tokens come as events of later steps.

        Raises:
            CallerError: it can't be served as made.
            Busy: as many requests wait as may.
        """
        return self.scheduler.add(request)

    def cancel(self, sequence: Sequence, finish: FinishReason = "cancelled") -> None:
        """End a request now, wherever it is; no event follows."""
        self.scheduler.cancel(sequence, finish)

    def pause(self, sequence: Sequence, paused: bool) -> None:
        """Stop computing a request while its reader is behind, or go on with it."""
        self.scheduler.pause(sequence, paused)

    def step(self) -> list[Event]:
        """Compute one batch; returns what its requests' readers get.

        A request's own fault (its grammar, its adapter) ends that request; a failed forward pass ends its batch.
        """
        batch, events = self._load_adapters(self.scheduler.schedule())
        if not batch.scheduled:
            return events + self.scheduler.update(batch, [])
        sequences = [item.sequence for item in batch.sampling]
        try:
            masks = self._masks.compute(sequences)  # beside the forward pass
            logits = self._runner.forward(batch)
            tokens = self._sampler.sample(logits, sequences, masks.result()) if sequences else []
        except Exception as error:  # the model's boundary: memory that runs out, a device that fails
            logger.exception("a forward pass failed", extra={"fields": {"sequences": len(batch.scheduled)}})
            return events + self.scheduler.fail(batch, error)
        return events + self.scheduler.update(batch, tokens)

    def idle(self) -> None:
        """Assert that the bookkeeping is consistent; for when there is nothing else to do."""
        self.scheduler.check()

    def close(self) -> None:
        """End its threads."""
        self._masks.close()

    def _load_adapters(self, batch: Batch) -> tuple[Batch, list[Event]]:
        """Make new adapters resident; who uses one that can't be, ends."""
        events: list[Event] = []
        for slot, adapter in batch.loads:
            try:
                self._runner.load(slot, adapter)
            except Exception as error:  # noqa: BLE001  files of a user's making: a fault in them ends their requests only
                batch, ended = self.scheduler.reject(batch, slot, error)
                events += ended
        return batch, events
