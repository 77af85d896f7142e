"""The block manager against a model that remembers everything that was ever computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from framework.engine.adapter import Adapter
from framework.engine.block_manager import BlockManager
from framework.engine.sequence import Request, SamplingParams, Sequence

SIZE = 4


def sequence(tokens: list[int], **rest: Any) -> Sequence:
    return Sequence(Request(tuple(tokens), SamplingParams(1), **rest))


def admitted(manager: BlockManager, tokens: list[int], **rest: Any) -> tuple[Sequence, tuple[tuple[int, int], ...]]:
    new = sequence(tokens, **rest)
    return new, manager.admit(new, manager.plan(new))


def computed(manager: BlockManager, tokens: list[int], **rest: Any) -> Sequence:
    """A sequence with all its tokens computed."""
    new, _ = admitted(manager, tokens, **rest)
    manager.commit(new, new.missing)
    manager.copied()
    return new


@pytest.mark.parametrize("length", [1, 3, 4, 5, 7, 8, 9, 12])
@pytest.mark.parametrize("tail", [[], [90], [90, 91, 92, 93, 94]])
def test_a_known_prefix_is_found_to_the_token_and_one_is_left_to_compute(length: int, tail: list[int]) -> None:
    manager = BlockManager(20, SIZE)
    computed(manager, list(range(length)) + [70] * 3)
    new = sequence(list(range(length)) + tail)
    plan = manager.plan(new)
    assert plan.cached == min(length, len(new.tokens) - 1)
    assert len(plan.shared) == plan.cached // SIZE
    assert (plan.source is not None) == (plan.cached % SIZE > 0)


def test_a_partly_filled_block_is_known_token_by_token() -> None:
    manager = BlockManager(20, SIZE)
    first, _ = admitted(manager, [1, 2, 3])
    found = []
    for _ in range(3):
        found.append(manager.plan(sequence([1, 2, 3, 4])).cached)
        manager.commit(first, 1)
    assert [*found, manager.plan(sequence([1, 2, 3, 4])).cached] == [0, 1, 2, 3]


def test_the_longest_of_several_partly_equal_blocks_is_copied() -> None:
    manager = BlockManager(20, SIZE)
    for tokens in ([1, 9], [1, 2, 8]):
        computed(manager, tokens)
    best = computed(manager, [1, 2, 3, 4])
    computed(manager, [1, 7, 3, 4])
    new, copies = admitted(manager, [1, 2, 3, 7])
    assert copies == ((best.blocks[0], new.blocks[0]),)
    assert new.computed == 3


def test_a_full_block_is_shared_without_a_copy() -> None:
    manager = BlockManager(20, SIZE)
    first = computed(manager, [1, 2, 3, 4])
    new, copies = admitted(manager, [1, 2, 3, 4, 9])
    assert copies == ()
    assert new.blocks[0] == first.blocks[0]


def test_what_is_not_computed_is_not_shared() -> None:
    manager = BlockManager(20, SIZE)
    first, _ = admitted(manager, list(range(8)))
    manager.commit(first, 5)
    assert manager.plan(sequence(list(range(8)))).cached == 5


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"salt": "a"}, {"salt": "b"}),
        ({"salt": ""}, {"salt": "a"}),
        ({"adapter": Adapter("d", Path("x"))}, {}),
        ({"adapter": Adapter("d", Path("x"))}, {"adapter": Adapter("e", Path("x"))}),
        ({"salt": "d"}, {"adapter": Adapter("d", Path("x"))}),
        ({"salt": '", "d'}, {"salt": "", "adapter": Adapter("d", Path("x"))}),
    ],
)
def test_salts_and_adapters_never_share(one: dict[str, Any], other: dict[str, Any]) -> None:
    manager = BlockManager(20, SIZE)
    computed(manager, list(range(10)), **one)
    assert manager.plan(sequence(list(range(10)), **other)).cached == 0
    assert manager.plan(sequence(list(range(10)), **one)).cached == 9


def test_the_same_adapter_in_another_folder_shares() -> None:
    manager = BlockManager(20, SIZE)
    computed(manager, list(range(10)), adapter=Adapter("d", Path("here")))
    assert manager.plan(sequence(list(range(10)), adapter=Adapter("d", Path("there")))).cached == 9


def test_a_salt_may_be_any_text() -> None:
    manager = BlockManager(20, SIZE)
    computed(manager, list(range(10)), salt="\udc80\0é")
    assert manager.plan(sequence(list(range(10)), salt="\udc80\0é")).cached == 9


def test_a_source_is_not_reused_before_it_was_copied() -> None:
    manager = BlockManager(3, SIZE)
    manager.free(computed(manager, [1, 2, 3]))
    _, [(source, target)] = admitted(manager, [1, 2, 9])
    assert source != target
    assert manager.available == 1
    other, _ = admitted(manager, [5])
    assert source not in other.blocks
    manager.copied()
    assert manager.available == 1


def test_a_copy_is_given_up_where_there_is_no_room_for_both() -> None:
    manager = BlockManager(1, SIZE)
    manager.free(computed(manager, [1, 2, 3]))
    new, copies = admitted(manager, [1, 2, 9])
    assert (new.computed, copies) == (0, ())


def test_the_least_recently_used_contents_go_first_and_ends_before_beginnings() -> None:
    manager = BlockManager(4, SIZE)
    manager.free(computed(manager, [1] * 8))
    manager.free(computed(manager, [2] * 8))
    assert manager.plan(sequence([1] * 9)).cached == 8
    held, _ = admitted(manager, [3])
    assert manager.plan(sequence([1] * 9)).cached == 4
    assert manager.plan(sequence([2] * 9)).cached == 8
    manager.free(held)
    manager.free(computed(manager, [1] * 5))  # used again, so the other's are older now
    admitted(manager, [3] * 8)
    assert manager.plan(sequence([1] * 5)).cached == 4


def test_equal_contents_computed_twice_are_known_once() -> None:
    manager = BlockManager(8, SIZE)
    one, _ = admitted(manager, [1, 2, 3, 4, 5])
    other, _ = admitted(manager, [1, 2, 3, 4, 5])
    for each in (one, other):
        manager.commit(each, 5)
    manager.check([one, other])
    manager.free(one)
    manager.free(other)
    manager.check([])
    assert manager.available == 8
    assert manager.plan(sequence([1, 2, 3, 4, 5, 6])).cached == 5


def test_without_a_cache_nothing_is_remembered() -> None:
    manager = BlockManager(8, SIZE, prefix_cache=False)
    first = computed(manager, list(range(10)))
    assert first.computed == 10
    assert first.digests == []
    assert manager.plan(sequence(list(range(10)))).cached == 0


def test_who_computes_the_next_block_is_known_until_it_stops() -> None:
    manager = BlockManager(20, SIZE)
    first, _ = admitted(manager, list(range(12)))
    same, other = sequence(list(range(12))), sequence([9, *range(12)])
    assert manager.computing(same) is first
    assert manager.computing(other) is None
    manager.commit(first, 4)
    assert manager.computing(same) is first
    manager.commit(first, 4)
    assert manager.computing(same) is None  # its last token is its own to compute
    assert manager.computing(sequence(list(range(13)))) is first
    manager.free(first)
    assert manager.computing(sequence(list(range(13)))) is None


class Blocks(RuleBasedStateMachine):
    """Sequences come, compute, grow and go; what is found is the longest prefix among the blocks that still exist."""

    @initialize(blocks=st.integers(1, 10), size=st.integers(1, 4))
    def start(self, blocks: int, size: int) -> None:
        self.manager = BlockManager(blocks, size)
        self.live: list[Sequence] = []
        self.slots: list[list[int]] = [[0] * size for _ in range(blocks)]  # the tokens really in each block

    def held(self, each: Sequence) -> list[int]:
        size = self.manager.block_size
        return [self.slots[each.blocks[place // size]][place % size] for place in range(each.computed)]

    @rule(
        prefix=st.integers(0, 9), tail=st.lists(st.integers(0, 2), min_size=1, max_size=5), salt=st.sampled_from("ab")
    )
    def admit(self, prefix: int, tail: list[int], salt: str) -> None:
        new = sequence([1] * prefix + tail, salt=salt)
        plan = self.manager.plan(new)
        shareable = [
            _common(new.tokens, each.tokens[: each.computed]) for each in self.live if each.request.salt == salt
        ]
        best = min(max(shareable, default=0), len(new.tokens) - 1)
        assert plan.cached >= best // self.manager.block_size * self.manager.block_size
        assert plan.cached >= best or plan.source is None
        assert plan.cached < len(new.tokens)
        if plan.lack > 0:
            return
        for source, target in self.manager.admit(new, plan):
            self.slots[target] = list(self.slots[source])
        self.manager.copied()
        self.live.append(new)
        assert self.held(new) == new.tokens[: new.computed]
        self._compute(new, 1)  # a copy is known as soon as its owner has computed into it, which is in the same step

    @rule(which=st.integers(0, 9), count=st.integers(1, 6))
    def compute(self, which: int, count: int) -> None:
        if not self.live:
            return
        each = self.live[which % len(self.live)]
        if each.missing:
            self._compute(each, min(count, each.missing))

    def _compute(self, each: Sequence, count: int) -> None:
        size = self.manager.block_size
        for place in range(each.computed, each.computed + count):
            self.slots[each.blocks[place // size]][place % size] = each.tokens[place]
        self.manager.commit(each, count)

    @rule(which=st.integers(0, 9), tokens=st.lists(st.integers(0, 2), min_size=1, max_size=4))
    def grow(self, which: int, tokens: list[int]) -> None:
        if not self.live:
            return
        each = self.live[which % len(self.live)]
        lack = self.manager.blocks_for(len(each.tokens) + len(tokens)) - len(each.blocks)
        if lack <= self.manager.available:
            each.tokens += tokens
            self.manager.grow(each)

    @rule(which=st.integers(0, 9))
    def free(self, which: int) -> None:
        if self.live:
            self.manager.free(self.live.pop(which % len(self.live)))

    @invariant()
    def consistent(self) -> None:
        if not hasattr(self, "manager"):
            return
        self.manager.check(self.live)
        for each in self.live:
            assert self.held(each) == each.tokens[: each.computed]

    def teardown(self) -> None:
        if hasattr(self, "manager"):
            for each in self.live:
                self.manager.free(each)
            self.manager.check([])
            assert self.manager.available == self.manager.blocks


def _common(one: list[int], other: list[int]) -> int:
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


Blocks.TestCase.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
test_blocks_hold_what_their_sequences_computed = Blocks.TestCase


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 1), min_size=1, max_size=14), st.lists(st.integers(0, 1), min_size=1, max_size=14))
def test_two_prompts_share_exactly_what_they_begin_with(one: list[int], other: list[int]) -> None:
    manager = BlockManager(20, SIZE)
    computed(manager, one)
    assert manager.plan(sequence(other)).cached == min(_common(one, other), len(other) - 1)
