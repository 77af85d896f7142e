"""How far a run is, how fast it goes and how long it will take."""

from __future__ import annotations

import time

from indexers.report import OnProgress, Progress


class Meter:
    """Counts work done by weight (bytes) and reports it.

    Args:
        documents: how many documents there are to read.
        weight: their bytes in all.
        report: called at each step, from the thread that runs the index.
    """

    def __init__(self, documents: int, weight: int, report: OnProgress | None = None) -> None:
        self.started = time.perf_counter()
        self.documents_total = documents
        self.documents = 0
        self.chunks = 0
        self._weight = max(weight, 1)
        self._done = 0.0
        self._report = report

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def advance(self, *, documents: int = 0, chunks: int = 0, weight: float = 0.0) -> None:
        self.documents += documents
        self.chunks += chunks
        self._done += weight
        if self._report is None:
            return
        seconds = self.seconds
        share = min(self._done / self._weight, 1.0)
        left = seconds / share - seconds if share > 0.01 else None
        rate = self.chunks / seconds if seconds else 0.0
        self._report(Progress(self.documents, self.documents_total, self.chunks, share, rate, seconds, left))
