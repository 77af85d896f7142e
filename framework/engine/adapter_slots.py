"""Which adapter is resident in which slot: the least recently used one makes room, unless it is pinned or in use."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable

from framework.engine.adapter import Adapter


class AdapterSlots:
    """A fixed number of places for adapters on the device, keyed by the hash of their content.

    An adapter that finds no slot reserves the one with the fewest users: nobody joins them, so that it becomes free.

    Args:
        slots: how many there are; may be 0.
    """

    def __init__(self, slots: int) -> None:
        self._slots: OrderedDict[str, int] = OrderedDict()  # slot of each resident digest, least recently used first
        self._users = [0] * slots
        self._empty = list(range(slots - 1, -1, -1))
        self._pinned: set[str] = set()
        self._reserved: tuple[int, str] | None = None  # the slot, and for whom

    @property
    def resident(self) -> tuple[str, ...]:
        """Digests, the least recently used first."""
        return tuple(self._slots)

    @property
    def pinned(self) -> frozenset[str]:
        return frozenset(self._pinned)

    def repin(self, digests: Collection[str]) -> None:
        """Pin these and no others. If they are too many, so that no slot would be left, some of them are not."""
        self._pinned = set(sorted(digests)[: max(len(self._users) - 1, 0)])

    def find(self, digest: str) -> int | None:
        """The slot that `take` would give this adapter; None: it has to wait for one."""
        slot = self._slots.get(digest)
        if slot is not None:
            return slot if self._reserved is None or self._reserved[0] != slot else None
        if self._reserved is not None and self._reserved[1] != digest:
            return None
        if self._empty:
            return self._empty[-1]
        return next((slot for digest, slot in self._slots.items() if self._can_go(digest)), None)

    def take(self, adapter: Adapter) -> tuple[int, bool]:
        """Use the slot that `find` gave once more; whether the adapter has yet to be made resident there."""
        slot = self.find(adapter.digest)
        assert slot is not None, "an adapter takes a slot that it did not find"
        self._users[slot] += 1
        load = adapter.digest not in self._slots
        if load:
            self._vacate(slot)
            self._slots[adapter.digest] = slot
        self._slots.move_to_end(adapter.digest)
        return slot, load

    def release(self, slot: int) -> None:
        """One user less."""
        self._users[slot] -= 1
        assert self._users[slot] >= 0, f"slot {slot} was released more often than taken"
        if not self._users[slot] and slot not in self._slots.values():  # it was forgotten meanwhile
            self._empty.append(slot)

    def forget(self, slot: int) -> None:
        """What is in this slot is not usable: it could not be loaded. Its users still have to release it."""
        for digest in [digest for digest, held in self._slots.items() if held == slot]:
            del self._slots[digest]
        if not self._users[slot]:
            self._empty.append(slot)

    def reserve(self, digest: str) -> None:
        """Let the slot with the fewest users run empty for this adapter, unless one is reserved already."""
        if self._reserved is None:
            slots = [slot for held, slot in self._slots.items() if held not in self._pinned]
            self._reserved = min(slots, key=lambda slot: (self._users[slot], slot)), digest

    def clear_reservation(self) -> None:
        self._reserved = None

    def _can_go(self, digest: str) -> bool:
        return digest not in self._pinned and not self._users[self._slots[digest]]

    def _vacate(self, slot: int) -> None:
        if self._empty and self._empty[-1] == slot:
            self._empty.pop()
            return
        del self._slots[next(digest for digest, held in self._slots.items() if held == slot)]

    def check(self, used: Iterable[int]) -> None:
        """Assert every invariant, given the slots of all running sequences."""
        users = [0] * len(self._users)
        for slot in used:
            users[slot] += 1
        assert users == self._users, f"slots have {self._users} users, running sequences use them {users}"
        assert sorted([*self._slots.values(), *self._empty]) == list(range(len(users))), "a slot is lost or held twice"
        assert not any(self._users[slot] for slot in self._empty), "an empty slot is in use"
