"""Which adapter keeps its slot, and who waits for one."""

from __future__ import annotations

from pathlib import Path

from framework.engine.adapter import Adapter
from framework.engine.adapter_slots import AdapterSlots


def adapter(digest: str) -> Adapter:
    return Adapter(digest, Path(digest))


def used_once(slots: AdapterSlots, *digests: str) -> None:
    for digest in digests:
        slots.release(slots.take(adapter(digest))[0])


def test_the_same_content_takes_one_slot_and_is_loaded_once() -> None:
    slots = AdapterSlots(2)
    assert slots.take(Adapter("a", Path("here"))) == (0, True)
    assert slots.take(Adapter("a", Path("there"))) == (0, False)
    slots.check([0, 0])


def test_an_adapter_stays_resident_after_its_last_user() -> None:
    slots = AdapterSlots(2)
    used_once(slots, "a")
    assert slots.take(adapter("a")) == (0, False)


def test_the_least_recently_used_makes_room() -> None:
    slots = AdapterSlots(3)
    used_once(slots, "a", "b", "c", "a", "d")
    assert slots.resident == ("c", "a", "d")
    slots.check([])


def test_one_in_use_is_never_evicted() -> None:
    slots = AdapterSlots(2)
    slots.take(adapter("a"))
    used_once(slots, "b", "c", "d")
    assert slots.resident == ("a", "d")
    slots.take(adapter("d"))
    assert slots.find("e") is None


def test_a_pinned_one_is_never_evicted() -> None:
    slots = AdapterSlots(2)
    slots.repin({"a"})
    used_once(slots, "a", "b", "c", "d")
    assert slots.resident == ("a", "d")
    slots.repin(())
    used_once(slots, "e")
    assert slots.resident == ("d", "e")


def test_one_slot_always_stays_unpinned() -> None:
    slots = AdapterSlots(2)
    slots.repin({"b", "a"})
    assert slots.pinned == {"a"}


def test_a_reserved_slot_takes_no_more_users_until_the_one_who_waits_has_it() -> None:
    slots = AdapterSlots(2)
    for digest in ("a", "a", "b"):
        slots.take(adapter(digest))
    assert slots.find("c") is None
    slots.reserve("c")
    assert slots.find("a") == 0
    assert slots.find("b") is None, "it has the fewest users, so c waits for it"
    slots.reserve("d")
    slots.release(1)
    assert slots.find("d") is None
    assert slots.take(adapter("c")) == (1, True)


def test_what_could_not_be_loaded_is_not_resident_and_its_slot_is_free_after_its_users() -> None:
    slots = AdapterSlots(1)
    slot, _ = slots.take(adapter("a"))
    slots.forget(slot)
    assert slots.resident == ()
    assert slots.find("a") is None
    slots.release(slot)
    slots.check([])
    assert slots.take(adapter("a")) == (0, True)


def test_an_idle_slot_can_be_forgotten() -> None:
    slots = AdapterSlots(1)
    used_once(slots, "a")
    slots.forget(0)
    slots.check([])
    assert slots.find("b") == 0
