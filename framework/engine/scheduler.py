"""What the next step computes, and what follows from its tokens: ids and counts, no tensors.

There are no phases, only sequences whose computed tokens have to catch up with their known ones. Prompts, chunks of
them, tokens that a grammar forces and the last sampled one differ in number alone (the idea is that of vLLM's V1
scheduler).
"""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Sequence as Row
from dataclasses import dataclass, replace
from functools import cached_property

from framework.engine.adapter import Adapter
from framework.engine.adapter_slots import AdapterSlots
from framework.engine.block_manager import BlockManager, Plan
from framework.engine.limits import EngineLimits as EngineLimits
from framework.engine.sequence import FinishReason, Limit, MaskProvider, Request, SampledToken, Sequence, Status
from framework.errors import Busy, CallerError

PATIENCE = 1024  # so many later requests may go before one whose priority is one step less urgent: nobody starves


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A sequence whose tokens[computed : computed + count] the step computes."""

    sequence: Sequence
    count: int


@dataclass(frozen=True)
class Batch:
    """One step's work.

    Attributes:
        copies: blocks (from, to) to be copied before the forward pass.
        loads: adapters to make resident in slots before it.
    """

    scheduled: tuple[Scheduled, ...]
    copies: tuple[tuple[int, int], ...] = ()
    loads: tuple[tuple[int, Adapter], ...] = ()

    @cached_property
    def sampling(self) -> tuple[Scheduled, ...]:
        """Those that will have no token left to compute, so that their logits choose the next one."""
        return tuple(item for item in self.scheduled if item.count == item.sequence.missing)


@dataclass(frozen=True, slots=True)
class Event:
    """What a request's reader gets after a step: new tokens, the end, or both.

    Attributes:
        error: what ended it, where `finish` is "error".
    """

    sequence: Sequence
    tokens: tuple[SampledToken, ...] = ()
    finish: FinishReason | None = None
    error: Exception | None = None


class Scheduler:
    """Chooses each step's work within the limits, and keeps every sequence's state.

    The order is by priority, then arrival. Running sequences first get blocks for the tokens they know; who finds none
    takes them from the least urgent one, which waits and is computed again. Then waiting ones are admitted. Last, the
    budget of tokens is shared out: one for each sequence that decodes, the rest to prompts, where those that take
    several steps leave half to shorter ones.
    """

    def __init__(self, limits: EngineLimits) -> None:
        self.limits = limits
        self.blocks = BlockManager(limits.blocks, limits.block_size, limits.prefix_cache)
        self.slots = AdapterSlots(limits.adapter_slots)
        self.running: list[Sequence] = []  # most urgent first, as is `waiting`
        self.waiting: list[Sequence] = []
        self._batch: Batch | None = None  # being computed

    @property
    def has_work(self) -> bool:
        """Someone waits or runs who isn't paused; then a batch is never empty."""
        return any(not sequence.paused for queue in (self.running, self.waiting) for sequence in queue)

    def add(self, request: Request) -> Sequence:
        """Let a request wait for its turn.

        Raises:
            CallerError: it can't be served as made.
            Busy: as many wait as may.
        """
        self._accept(request)
        if len(self.running) + len(self.waiting) >= self.limits.max_sequences + self.limits.max_waiting:
            raise Busy(
                f"{len(self.running)} requests run and {len(self.waiting)} wait, which is as many as may.",
                hint="Try again later.",
            )
        if request.adapter is not None and request.adapter.pinned is not None:
            self.slots.repin(request.adapter.pinned)
        sequence = Sequence(request)
        insort(self.waiting, sequence, key=_urgency)
        return sequence

    def cancel(self, sequence: Sequence, finish: FinishReason = "cancelled") -> None:
        """End a sequence at once, at any moment; no event follows. What has ended already stays as it is.

        Args:
            finish: "stop" where its reader has all that it wanted.
        """
        if sequence.status is not Status.FINISHED:
            self._end(sequence, finish)

    def pause(self, sequence: Sequence, paused: bool) -> None:
        """Don't schedule a sequence until it is resumed; others may take its blocks meanwhile."""
        sequence.paused = paused

    def schedule(self) -> Batch:
        """The next step's work; `update` or `fail` must follow before the next call."""
        assert self._batch is None, "the last batch was neither updated nor failed"
        self._grow()
        copies, loads = self._admit()
        self._batch = Batch(self._share_out(), copies, loads)
        return self._batch

    def update(self, batch: Batch, tokens: Row[SampledToken | Exception]) -> list[Event]:
        """Take in what was computed.

        Args:
            tokens: the choice for each of `batch.sampling`; an exception ends that request alone.
        """
        chosen = {item.sequence: token for item, token in zip(batch.sampling, tokens, strict=True)}
        events = []
        for item in batch.scheduled:
            if item.sequence.status is Status.RUNNING:  # otherwise it was cancelled meanwhile
                self.blocks.commit(item.sequence, item.count)
                if item.sequence in chosen:
                    events.append(self._advance(item.sequence, chosen[item.sequence]))
        self._close()
        return events

    def fail(self, batch: Batch, error: Exception) -> list[Event]:
        """The forward pass did not happen: end the batch's sequences, and forget what it would have computed."""
        left = [item.sequence for item in batch.scheduled if item.sequence.status is Status.RUNNING]
        events = [self._error(sequence, error) for sequence in left]
        self._close()
        return events

    def reject(self, batch: Batch, slot: int, error: Exception) -> tuple[Batch, list[Event]]:
        """An adapter can't be loaded: end all that use its slot; returns what is left of the batch."""
        self.slots.forget(slot)
        events = [self._error(sequence, error) for sequence in list(self.running) if sequence.slot == slot]
        left = tuple(item for item in batch.scheduled if item.sequence.status is Status.RUNNING)
        self._batch = replace(batch, scheduled=left)
        return self._batch, events

    def check(self) -> None:
        """Assert every invariant of sequences, blocks and slots."""
        self.blocks.check(self.running)
        self.slots.check(sequence.slot for sequence in self.running if sequence.slot >= 0)
        for queue, status in ((self.running, Status.RUNNING), (self.waiting, Status.WAITING)):
            assert all(sequence.status is status for sequence in queue)
            assert queue == sorted(queue, key=_urgency)
        assert not any(sequence.blocks for sequence in self.waiting)
        assert len(self.running) <= self.limits.max_sequences

    def _accept(self, request: Request) -> None:
        length, limits = len(request.prompt), self.limits
        if not length:
            raise CallerError("The prompt is empty.", field="prompt")
        if length > limits.longest_prompt:
            held = f"the context holds {limits.context_length}, the key-value cache {limits.room}"
            raise CallerError(
                f"The prompt has {length} tokens, {limits.longest_prompt} is the most that fits ({held}).",
                hint="Shorten it.",
                field="prompt",
            )
        least, highest = min(request.prompt), max(request.prompt)
        if not 0 <= least <= highest < limits.vocabulary:
            wrong = least if least < 0 else highest
            raise CallerError(
                f"The prompt names token {wrong}; this model has tokens 0 to {limits.vocabulary - 1}.", field="prompt"
            )
        if request.params.max_tokens < 1:
            raise CallerError(f"max_tokens is {request.params.max_tokens}, and must be at least 1.", field="max_tokens")
        if request.adapter is not None and not limits.adapter_slots:
            raise CallerError(
                "This engine has no slots for adapters.",
                hint="Set adapter_slots in section [models.engine] to more than 0.",
                field="adapter",
            )

    def _grow(self) -> None:
        """Let every running sequence hold blocks for all its known tokens, the most urgent one first."""
        size = self.limits.block_size
        for sequence in list(self.running):
            if sequence.paused or len(sequence.tokens) <= len(sequence.blocks) * size:
                continue
            lack = self.blocks.blocks_for(len(sequence.tokens)) - len(sequence.blocks)
            while sequence.status is Status.RUNNING and self.blocks.available < lack:
                self._preempt(self._victim(sequence) or sequence)
            if sequence.status is Status.RUNNING:
                self.blocks.grow(sequence)

    def _victim(self, asker: Sequence) -> Sequence | None:
        """Who gives way to a running sequence: one whose reader is behind, else the last if it is less urgent."""
        return self._paused() or (self.running[-1] if self.running[-1] is not asker else None)

    def _paused(self) -> Sequence | None:
        return next((sequence for sequence in reversed(self.running) if sequence.paused), None)

    def _outranked(self, newcomer: Sequence) -> Sequence | None:
        """Who gives way to a waiting sequence: one whose reader is behind, else the last if its priority is lower."""
        paused = self._paused()
        if paused is not None or not self.running:
            return paused
        last = self.running[-1]
        later = _urgency(last) > _urgency(newcomer)
        return last if later and last.request.priority > newcomer.request.priority else None

    def _admit(self) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, Adapter], ...]]:
        """Let waiting sequences run, in order; returns copies and loads that this takes."""
        copies: list[tuple[int, int]] = []
        loads: list[tuple[int, Adapter]] = []
        self.slots.clear_reservation()
        for sequence in list(self.waiting):
            if sequence.paused or self._comes_cheaper_later(sequence):
                continue
            if not self._budget_for(sequence):
                if self._is_long(sequence):
                    continue  # shorter ones behind it have the other half of the step
                break
            if not self._seat(sequence):
                break
            if not self._slot(sequence):
                continue
            plan = self._room(sequence)
            if plan is None:
                break
            copies += self.blocks.admit(sequence, plan)
            sequence.cached = min(plan.cached, len(sequence.request.prompt))
            loads += self._start(sequence)
        return tuple(copies), tuple(loads)

    def _comes_cheaper_later(self, sequence: Sequence) -> bool:
        """Its next block is being computed by a more urgent sequence, and will then be shared."""
        other = self.blocks.computing(sequence)
        return other is not None and not other.paused and _urgency(other) < _urgency(sequence)

    def _budget_for(self, newcomer: Sequence) -> bool:
        """At least one token of the step is left for it."""
        own, most = _urgency(newcomer), self.limits.max_tokens_per_step
        spoken_for = yielding = 0
        for sequence in self.running:
            if not sequence.paused:
                wanted = sequence.missing if _urgency(sequence) < own else 1
                spoken_for += wanted
                yielding += wanted if self._yields(sequence, newcomer) else 0
        return spoken_for - max(yielding - most // 2, 0) < most

    def _yields(self, sequence: Sequence, other: Sequence) -> bool:
        """A prompt that takes several steps anyhow leaves half of each to shorter ones that came after it."""
        shorter = self._is_long(sequence) and not self._is_long(other)
        return shorter and other.request.priority <= sequence.request.priority

    def _is_long(self, sequence: Sequence) -> bool:
        return sequence.missing > self.limits.max_tokens_per_step

    def _seat(self, newcomer: Sequence) -> bool:
        while len(self.running) >= self.limits.max_sequences:
            victim = self._outranked(newcomer)
            if victim is None:
                return False
            self._preempt(victim)
        return True

    def _slot(self, newcomer: Sequence) -> bool:
        """There is a slot for its adapter. Otherwise one is kept for it, and it is passed over until that is free."""
        adapter = newcomer.request.adapter
        if adapter is None:
            return True
        while self.slots.find(adapter.digest) is None:
            holders = [sequence for sequence in self.running if sequence.paused and sequence.slot >= 0]
            if not holders:
                self.slots.reserve(adapter.digest)
                return False
            self._preempt(holders[-1])
        return True

    def _room(self, newcomer: Sequence) -> Plan | None:
        """A plan for blocks that can be carried out, if need be after less urgent ones have given way."""
        while (plan := self.blocks.plan(newcomer)).lack > 0:
            victim = self._outranked(newcomer)
            if victim is None:
                return None
            self._preempt(victim)
        return plan

    def _start(self, sequence: Sequence) -> list[tuple[int, Adapter]]:
        """Move a sequence that has its blocks to the running ones; returns its adapter if it must be loaded."""
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_urgency)
        sequence.status = Status.RUNNING
        sequence.started = sequence.started or time.monotonic()
        adapter = sequence.request.adapter
        if adapter is None:
            return []
        sequence.slot, load = self.slots.take(adapter)
        return [(sequence.slot, adapter)] if load else []

    def _share_out(self) -> tuple[Scheduled, ...]:
        """Tokens for this step: one for each running sequence, and what is left for the most urgent that lack more."""
        active = [sequence for sequence in self.running if not sequence.paused]
        left = self.limits.max_tokens_per_step - len(active)
        scheduled = []
        for place, sequence in enumerate(active):
            more = min(left, sequence.missing - 1)
            if self._is_long(sequence):
                shorter = [other.missing for other in active[place + 1 :] if self._yields(sequence, other)]
                theirs = min(sum(shorter), self.limits.max_tokens_per_step // 2) - len(shorter)
                more = max(min(more, left - theirs), 0)
            left -= more
            scheduled.append(Scheduled(sequence, 1 + more))
        return tuple(scheduled)

    def _advance(self, sequence: Sequence, token: SampledToken | Exception) -> Event:
        """Append a sampled token and those that must follow it, and see whether that is the end."""
        if isinstance(token, Exception):
            return self._error(sequence, token)
        if not sequence.first_token:
            sequence.first_token = time.monotonic()
        mask, new = sequence.request.mask, [token]
        sequence.tokens.append(token.token)
        try:
            finish = self._ending(sequence, mask is not None and mask.finished)
            if finish is None and mask is not None and sequence.request.params.logprobs is None:
                finish = self._force(sequence, mask, new)
        except Exception as error:  # noqa: BLE001  a grammar's fault ends its own request, never the batch
            return self._error(sequence, error)
        if finish is not None:
            self._end(sequence, finish)
        return Event(sequence, tuple(new), finish)

    def _force(self, sequence: Sequence, mask: MaskProvider, new: list[SampledToken]) -> FinishReason | None:
        """Append the tokens that need no logits."""
        forced = mask.forced()
        for place, token in enumerate(forced, 1):
            new.append(SampledToken(token))
            sequence.tokens.append(token)
            finish = self._ending(sequence, place == len(forced) and mask.finished)
            if finish is not None:
                return finish
        return None

    def _ending(self, sequence: Sequence, complete: bool) -> FinishReason | None:
        if complete or sequence.tokens[-1] in sequence.request.params.stop_ids:
            return "stop"
        sequence.limit = self._limit(sequence)
        return None if sequence.limit is None else "length"

    def _limit(self, sequence: Sequence) -> Limit | None:
        known = len(sequence.tokens)
        if sequence.generated >= sequence.request.params.max_tokens:
            return "max_tokens"
        if known >= self.limits.context_length:
            return "context"
        return "memory" if known > self.limits.room else None  # it could never be computed, even alone

    def _error(self, sequence: Sequence, error: Exception) -> Event:
        self._end(sequence, "error")
        return Event(sequence, finish="error", error=error)

    def _end(self, sequence: Sequence, finish: FinishReason) -> None:
        self._withdraw(sequence)
        sequence.status, sequence.finish, sequence.ended = Status.FINISHED, finish, time.monotonic()

    def _preempt(self, sequence: Sequence) -> None:
        """Take a running sequence's blocks away; its tokens stay, and are computed again when it is admitted again."""
        self._withdraw(sequence)
        sequence.status = Status.WAITING
        sequence.preemptions += 1
        insort(self.waiting, sequence, key=_urgency)

    def _withdraw(self, sequence: Sequence) -> None:
        """Out of its queue, with blocks and slot given back. Nobody gets them before the next batch is made."""
        if sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        self.blocks.free(sequence)
        if sequence.slot >= 0:
            self.slots.release(sequence.slot)
            sequence.slot = -1

    def _close(self) -> None:
        self.blocks.copied()
        self._batch = None


def _urgency(sequence: Sequence) -> int:
    """Lower goes first."""
    return sequence.number + PATIENCE * sequence.request.priority
