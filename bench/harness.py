"""What every benchmark shares: turns of ours and the peer, medians with their spread, and the printed figure."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "numpy", "qdrant-edge-py", "tokenizers", "transformers", "sentence-transformers")


@dataclass(frozen=True, slots=True)
class Spread:
    """Repeated measurements of one thing."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def text(self) -> str:
        """Median, and the lowest and highest in brackets."""
        return f"{self.median:.4g} ({min(self.values):.4g}-{max(self.values):.4g})"


@dataclass(frozen=True, slots=True)
class Figure:
    """One result. `ratio` is ours / peer; `goal` is the least that it may be, or the most where `below` is set.

    Without a peer the goal is on ours itself; without a goal the figure is only reported.
    """

    name: str
    ours: Spread
    unit: str
    peer: Spread | None = None
    peer_name: str = ""
    goal: float | None = None
    below: bool = False

    @property
    def ratio(self) -> float | None:
        return self.ours.median / self.peer.median if self.peer else None

    @property
    def ok(self) -> bool:
        if self.goal is None:
            return True
        value = self.ours.median if self.ratio is None else self.ratio
        return value <= self.goal if self.below else value >= self.goal

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "ours": self.ours.median,
            "peer": self.peer.median if self.peer else None,
            "unit": self.unit,
            "ratio": self.ratio,
            "goal": self.goal,
            "ok": self.ok,
        }


def describe(figure: Figure) -> str:
    """The figure as one line."""
    parts = [f"{figure.name}: {figure.ours.text} {figure.unit}"]
    if figure.peer:
        parts.append(f"{figure.peer_name or 'peer'} {figure.peer.text} {figure.unit}, ratio {figure.ratio:.3f}")
    if figure.goal is not None:
        parts.append(f"goal {'<=' if figure.below else '>='} {figure.goal:g}: {'ok' if figure.ok else 'MISSED'}")
    return ", ".join(parts)


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def alternate(ours: Callable[[], float], peer: Callable[[], float], rounds: int) -> tuple[Spread, Spread]:
    """Measure A B A B: whatever slows the machine for a while slows both. Each call returns its own measurement."""
    pairs = [(ours(), peer()) for _ in range(rounds)]
    return Spread(tuple(a for a, _ in pairs)), Spread(tuple(b for _, b in pairs))


def environment() -> str:
    """Machine and versions, as one line for the record."""
    parts = [f"{_processor()}, {_cores()} cores, Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(parts)


def _processor() -> str:
    try:
        lines: Sequence[str] = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = ()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
