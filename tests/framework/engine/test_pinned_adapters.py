"""Pins reach an engine with the requests, each of which tells what is pinned now."""

from __future__ import annotations

from pathlib import Path

from framework.engine.adapter import Adapter
from framework.engine.adapter_slots import AdapterSlots
from framework.engine.scheduler import EngineLimits, Scheduler
from framework.engine.sequence import Request, SampledToken, SamplingParams


def answered(scheduler: Scheduler, digest: str, pinned: frozenset[str] | None) -> None:
    """Serve one request of one token with this adapter."""
    adapter = Adapter(digest, Path(digest), pinned)
    scheduler.add(Request((1, 2), SamplingParams(max_tokens=1), adapter=adapter))
    scheduler.update(scheduler.schedule(), [SampledToken(3)])
    assert not scheduler.running


def test_what_is_pinned_stays_resident_until_a_request_says_otherwise() -> None:
    scheduler = Scheduler(EngineLimits(blocks=8, context_length=64, block_size=4, adapter_slots=2))
    pinned = frozenset({"a"})
    for digest in ("a", "b", "c", "d"):
        answered(scheduler, digest, pinned)
    assert set(scheduler.slots.resident) == {"a", "d"}
    answered(scheduler, "b", None)
    assert set(scheduler.slots.resident) == {"a", "b"}, "nothing said: as before"
    answered(scheduler, "c", frozenset())
    answered(scheduler, "d", frozenset())
    assert "a" not in scheduler.slots.resident


def test_pins_never_take_the_last_slot() -> None:
    slots = AdapterSlots(2)
    slots.repin({"a", "b", "c"})
    assert len(slots.pinned) == 1
    none = AdapterSlots(0)
    none.repin({"a"})
    assert none.pinned == frozenset()
