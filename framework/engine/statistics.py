"""What an engine did and how fast, in all and by adapter: counts since its start, times over its latest requests."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

from framework.engine.sequence import Sequence, Status

WINDOW = 512  # requests that times are taken from
RATE_SECONDS = 10  # tokens per second are counted over so many whole seconds
ADAPTERS = 256  # adapters whose figures are kept; the one that ended a request longest ago goes first


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds, over the latest requests that had such a time; zeros where there was none."""

    mean: float = 0.0
    p50: float = 0.0
    p95: float = 0.0

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Times:
        """Percentiles by the nearest rank."""
        ordered = sorted(seconds)
        if not ordered:
            return cls()
        last = len(ordered) - 1
        return cls(sum(ordered) / len(ordered), ordered[round(0.5 * last)], ordered[round(0.95 * last)])


@dataclass(frozen=True, slots=True)
class Figures:
    """Requests of one kind that ended, and how long they took.

    Attributes:
        finished: ended by themselves or by their limit.
        cancelled: left by their reader before their end.
        failed: ended by an error.
        prompt_tokens, cached_tokens, generated_tokens: of all these; cached ones are those of prompts whose keys and
            values were there already.
        preemptions: how often blocks were taken away from one.
        queue: from arrival to the first step.
        ttft: from arrival to the first token.
        tpot: between two tokens, on average of a request.
    """

    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    queue: Times = field(default_factory=Times)
    ttft: Times = field(default_factory=Times)
    tpot: Times = field(default_factory=Times)

    @property
    def cache_hit_rate(self) -> float:
        """Share of the prompts' tokens that was cached."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "cache_hit_rate": self.cache_hit_rate}


@dataclass(frozen=True, slots=True)
class Statistics:
    """An engine at one moment.

    Attributes:
        running, waiting: requests that are here.
        paused: how many of them wait for their readers.
        tokens_per_second: generated in all, over the last ten seconds.
        blocks_used, blocks_total: blocks of keys and values that requests hold, and all there are; cached ones that
            nobody holds are free.
        total: all requests that ended.
        adapters: those of each adapter, by its digest.
    """

    running: int = 0
    waiting: int = 0
    paused: int = 0
    tokens_per_second: float = 0.0
    blocks_used: int = 0
    blocks_total: int = 0
    total: Figures = field(default_factory=Figures)
    adapters: Mapping[str, Figures] = field(default_factory=lambda: MappingProxyType({}))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return {
            "running": self.running,
            "waiting": self.waiting,
            "paused": self.paused,
            "tokens_per_second": self.tokens_per_second,
            "blocks_used": self.blocks_used,
            "blocks_total": self.blocks_total,
            **self.total.to_dict(),
            "adapters": {digest: figures.to_dict() for digest, figures in self.adapters.items()},
        }


class Recorder:
    """Keeps count for one engine. Written by its thread, read by any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = _Tally()
        self._adapters: OrderedDict[str, _Tally] = OrderedDict()
        self._seconds: deque[list[int]] = deque(maxlen=RATE_SECONDS + 1)  # [second, tokens generated in it]

    def generated(self, tokens: int) -> None:
        """A step gave so many tokens."""
        second = int(time.monotonic())
        with self._lock:
            if not self._seconds or self._seconds[-1][0] != second:
                self._seconds.append([second, 0])
            self._seconds[-1][1] += tokens

    def ended(self, sequence: Sequence, failed: bool = False) -> None:
        """A request is over; `failed`: by an error."""
        adapter = sequence.request.adapter
        with self._lock:
            self._total.add(sequence, failed)
            if adapter is not None:
                self._adapters.setdefault(adapter.digest, _Tally()).add(sequence, failed)
                self._adapters.move_to_end(adapter.digest)
                if len(self._adapters) > ADAPTERS:
                    self._adapters.popitem(last=False)

    def snapshot(self, live: Iterable[Sequence], present: int, blocks: tuple[int, int]) -> Statistics:
        """The figures now.

        Args:
            live: requests that the engine has taken in.
            present: how many there are with those that it has not.
            blocks: held, and in all.
        """
        known = list(live)
        running = sum(sequence.status is Status.RUNNING for sequence in known)
        with self._lock:
            return Statistics(
                running,
                present - running,
                sum(sequence.paused for sequence in known),
                self._rate(),
                *blocks,
                total=self._total.figures(),
                adapters=MappingProxyType({digest: tally.figures() for digest, tally in self._adapters.items()}),
            )

    def _rate(self) -> float:
        """Over the last whole seconds; the present one has only begun."""
        now = int(time.monotonic())
        return sum(tokens for second, tokens in self._seconds if now - RATE_SECONDS <= second < now) / RATE_SECONDS


class _Tally:
    """Sums of one kind of requests."""

    def __init__(self) -> None:
        self.ends = {"finished": 0, "cancelled": 0, "failed": 0}
        self.prompt = self.cached = self.generated = self.preemptions = 0
        self.queue: deque[float] = deque(maxlen=WINDOW)
        self.ttft: deque[float] = deque(maxlen=WINDOW)
        self.tpot: deque[float] = deque(maxlen=WINDOW)

    def add(self, sequence: Sequence, failed: bool) -> None:
        kind = "failed" if failed else "cancelled" if sequence.finish == "cancelled" else "finished"
        self.ends[kind] += 1
        self.preemptions += sequence.preemptions
        self.generated += sequence.generated
        if not sequence.started:
            return  # it never ran: nothing was computed or found for it
        self.prompt += len(sequence.request.prompt)
        self.cached += min(sequence.cached, len(sequence.request.prompt))
        self.queue.append(sequence.started - sequence.arrived)
        if sequence.first_token:
            self.ttft.append(sequence.first_token - sequence.arrived)
            if sequence.generated > 1 and sequence.ended > sequence.first_token:
                self.tpot.append((sequence.ended - sequence.first_token) / (sequence.generated - 1))

    def figures(self) -> Figures:
        return Figures(
            **self.ends,
            prompt_tokens=self.prompt,
            cached_tokens=self.cached,
            generated_tokens=self.generated,
            preemptions=self.preemptions,
            queue=Times.of(self.queue),
            ttft=Times.of(self.ttft),
            tpot=Times.of(self.tpot),
        )
