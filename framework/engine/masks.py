"""What may come next in constrained answers, worked out in worker threads while the forward pass runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from framework.engine.sequence import MaskProvider
from framework.engine.sequence import Sequence as Running

Mask: TypeAlias = NDArray[np.bool_] | Exception | None
MOST_THREADS = 4


@dataclass(frozen=True, slots=True)
class Pending:
    """Masks that are being computed, of which each part holds every n-th constrained sequence."""

    constrained: tuple[bool, ...]
    parts: tuple[Future[list[Mask]], ...] = ()

    def result(self) -> list[Mask]:
        """Each sequence's mask, once all are there: None where anything may follow, or what its provider raised."""
        done = [part.result() for part in self.parts]
        places = iter(range(len(self.constrained)))
        return [_nth(done, next(places)) if given else None for given in self.constrained]


def _nth(parts: Sequence[Sequence[Mask]], place: int) -> Mask:
    return parts[place % len(parts)][place // len(parts)]


class MaskWorkers:
    """A few threads, started with the first mask that is asked for; `close` ends them."""

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads or min(MOST_THREADS, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="lectern-masks")

    def compute(self, sequences: Sequence[Running]) -> Pending:
        """Begin; a sequence without a mask provider costs nothing."""
        providers = [sequence.request.mask for sequence in sequences]
        asked = [provider for provider in providers if provider is not None]
        parts = (asked[start :: self._threads] for start in range(min(self._threads, len(asked))))
        return Pending(
            tuple(provider is not None for provider in providers),
            tuple(self._pool.submit(_allowed, part) for part in parts),
        )

    def close(self) -> None:
        """End the threads; masks that were begun are finished first."""
        self._pool.shutdown(wait=True)


def _allowed(providers: Sequence[MaskProvider]) -> list[Mask]:
    found: list[Mask] = []
    for provider in providers:
        try:
            found.append(provider.allowed())
        except Exception as error:  # noqa: BLE001  a grammar's fault ends its own request, never the batch
            found.append(error)
    return found
