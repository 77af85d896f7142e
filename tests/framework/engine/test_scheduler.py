"""What the scheduler lets run, in which order, and how sequences end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from framework.engine.adapter import Adapter
from framework.engine.scheduler import PATIENCE, Batch, EngineLimits, Event, Scheduler
from framework.engine.sequence import Request, SampledToken, SamplingParams, Sequence, Status
from framework.errors import Busy, CallerError


def scheduler(**changes: Any) -> Scheduler:
    values = {"blocks": 100, "block_size": 4, "context_length": 400, "max_sequences": 4, "max_tokens_per_step": 16}
    return Scheduler(EngineLimits(**{**values, **changes}))


NEXT = iter(range(1000, 10**9))


def request(length: int = 5, max_tokens: int = 50, **rest: Any) -> Request:
    """With a prompt unlike any other, unless one is given."""
    prompt = rest.pop("prompt", None) or [next(NEXT) for _ in range(length)]
    stop_ids, logprobs = rest.pop("stop_ids", frozenset()), rest.pop("logprobs", None)
    return Request(tuple(prompt), SamplingParams(max_tokens, stop_ids=stop_ids, logprobs=logprobs), **rest)


def adapter(digest: str) -> Adapter:
    return Adapter(digest, Path(digest))


def step(of: Scheduler, token: int = 7) -> tuple[Batch, list[Event]]:
    batch = of.schedule()
    of.check()
    events = of.update(batch, [SampledToken(token)] * len(batch.sampling))
    of.check()
    return batch, events


def counts(batch: Batch) -> dict[Sequence, int]:
    return {item.sequence: item.count for item in batch.scheduled}


def run(of: Scheduler, most: int = 2000) -> Iterator[tuple[Batch, list[Event]]]:
    """Steps until there is no work."""
    for _ in range(most):
        if not of.has_work:
            return
        yield step(of)
    pytest.fail("the scheduler runs in circles")


def until(of: Scheduler, condition: Callable[[], object]) -> None:
    for _ in run(of):
        if condition():
            return
    pytest.fail("it never came so far")


class Forcing:
    """A grammar that forces these tokens after the first one, and is finished after so many calls."""

    def __init__(self, forced: list[int], finished: bool = False, error: Exception | None = None) -> None:
        self.todo, self.last, self.error = forced, finished, error
        self.calls = 0

    def allowed(self) -> np.ndarray:
        raise AssertionError("the scheduler needs no masks")

    def accept(self, token: int, logits: object) -> int:
        raise AssertionError("the sampler's call")

    def forced(self) -> list[int]:
        self.calls += 1
        if self.error:
            raise self.error
        forced, self.todo = self.todo, []
        return forced

    @property
    def finished(self) -> bool:
        return self.last and not self.todo


def test_bookkeeping_needs_no_torch() -> None:
    code = (
        "import sys; from framework.engine import sequence, block_manager, scheduler, adapter_slots, llm_engine;"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_long_prompt_is_computed_in_chunks_and_samples_with_the_last() -> None:
    of = scheduler()
    sequence = of.add(request(40))
    assert [(counts(batch)[sequence], len(events)) for batch, events in (step(of) for _ in range(4))] == [
        (16, 0),
        (16, 0),
        (8, 1),
        (1, 1),
    ]
    assert sequence.tokens[-2:] == [7, 7]


def test_decoding_goes_on_beside_the_chunks_of_a_more_urgent_prompt() -> None:
    of = scheduler()
    decoding = of.add(request(5))
    step(of)
    prompt = of.add(request(60, priority=-1))
    batch, _ = step(of)
    assert counts(batch) == {prompt: 15, decoding: 1}


def test_no_more_tokens_and_sequences_than_allowed() -> None:
    of = scheduler()
    for length in (30, 3, 3, 20, 7, 9):
        of.add(request(length, 9))
    for batch, _ in run(of):
        assert sum(item.count for item in batch.scheduled) <= 16
        assert len(of.running) <= 4


def test_requests_of_equal_priority_start_in_the_order_they_came() -> None:
    of = scheduler(max_sequences=1)
    sequences = [of.add(request(4, 2)) for _ in range(4)]
    list(run(of))
    assert all(a.started < b.started for a, b in pairwise(sequences))


def test_the_more_urgent_starts_first() -> None:
    of = scheduler(max_sequences=1)
    late, soon = of.add(request(priority=3)), of.add(request(priority=1))
    step(of)
    assert (late.status, soon.status) == (Status.WAITING, Status.RUNNING)


def test_the_least_urgent_is_overtaken_by_a_bounded_number() -> None:
    of = scheduler(max_sequences=1, max_waiting=10)
    patient = of.add(request(4, 1, priority=1))
    overtaken = 0
    for _ in range(PATIENCE + 20):
        of.add(request(4, 1))
        step(of)
        if patient.status is Status.FINISHED:
            break
        overtaken += 1
    assert 0 < overtaken <= PATIENCE


def test_an_urgent_request_takes_the_seat_of_one_of_lower_priority_only() -> None:
    of = scheduler(max_sequences=1)
    first = of.add(request(priority=1))
    step(of)
    equal = of.add(request(priority=1))
    step(of)
    assert (first.status, equal.status) == (Status.RUNNING, Status.WAITING)
    urgent = of.add(request(priority=0))
    step(of)
    assert (first.status, urgent.status) == (Status.WAITING, Status.RUNNING)
    assert (first.preemptions, first.blocks, first.computed) == (1, [], 0)


def test_out_of_blocks_the_last_gives_way_and_finds_its_blocks_again() -> None:
    of = scheduler(blocks=6, max_sequences=3)
    first, last = of.add(request(8, 13)), of.add(request(8, 9))
    until(of, lambda: last.preemptions)
    known = list(last.tokens)
    assert (first.preemptions, last.status) == (0, Status.WAITING)
    assert len(known) > 8
    until(of, lambda: last.status is Status.RUNNING)
    assert first.status is Status.FINISHED
    assert last.tokens[: len(known)] == known
    list(run(of))
    assert (last.generated, last.finish) == (9, "length")


def test_nobody_more_urgent_gives_way() -> None:
    of = scheduler(blocks=6)
    urgent, other = of.add(request(7, 17)), of.add(request(8, 14, priority=1))
    list(run(of))
    assert urgent.preemptions == 0
    assert other.preemptions > 0
    assert (urgent.generated, other.generated) == (17, 14)


def test_a_sequence_too_long_for_all_blocks_runs_until_they_are_full() -> None:
    of = scheduler(blocks=3)
    sequence = of.add(request(5, 50))
    list(run(of))
    assert (sequence.finish, sequence.limit, len(sequence.tokens)) == ("length", "memory", 13)


def test_the_context_ends_an_answer() -> None:
    of = scheduler(context_length=9)
    sequence = of.add(request(5, 50))
    list(run(of))
    assert (sequence.finish, sequence.limit, len(sequence.tokens)) == ("length", "context", 9)


def test_the_length_asked_for_ends_an_answer() -> None:
    of = scheduler()
    sequence = of.add(request(5, 3))
    events = [event for _, events in run(of) for event in events]
    assert [event.finish for event in events] == [None, None, "length"]
    assert (sequence.limit, sequence.generated) == ("max_tokens", 3)


def test_a_stop_id_ends_an_answer_and_is_part_of_it() -> None:
    of = scheduler()
    sequence = of.add(request(5, 3, stop_ids=frozenset({7})))
    _, [event] = step(of)
    assert (event.finish, event.tokens, sequence.limit) == ("stop", (SampledToken(7),), None)


@pytest.mark.parametrize(("length", "context", "blocks"), [(10, 10, 100), (11, 10, 100), (13, 400, 3)])
def test_a_prompt_that_can_not_fit_is_refused_with_both_lengths(length: int, context: int, blocks: int) -> None:
    of = scheduler(context_length=context, blocks=blocks)
    with pytest.raises(CallerError, match=rf"{length} tokens, {min(context - 1, 4 * blocks)} is the most") as refusal:
        of.add(request(length))
    assert refusal.value.field == "prompt"
    assert not of.has_work
    assert of.blocks.available == blocks


def test_an_empty_prompt_no_tokens_and_an_adapter_without_slots_are_refused() -> None:
    of = scheduler(adapter_slots=0)
    for wrong in (Request((), SamplingParams(1)), request(max_tokens=0), request(adapter=adapter("a"))):
        with pytest.raises(CallerError):
            of.add(wrong)
    assert not of.has_work


def test_a_full_queue_refuses() -> None:
    of = scheduler(max_sequences=2, max_waiting=1)
    first, *_ = [of.add(request()) for _ in range(3)]  # two of them run with the next step, so one waits
    with pytest.raises(Busy, match="0 requests run and 3 wait"):
        of.add(request())
    step(of)
    with pytest.raises(Busy, match="2 requests run and 1 wait"):
        of.add(request())
    of.cancel(first)
    of.add(request())


@pytest.mark.parametrize("wrong", [{"blocks": 0}, {"max_tokens_per_step": 3}, {"block_size": 0}, {"max_waiting": 0}])
def test_limits_that_can_not_work_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(CallerError) as refusal:
        scheduler(**wrong)
    assert refusal.value.field == next(iter(wrong))


def test_equal_prompts_that_come_at_once_are_computed_once() -> None:
    of = scheduler(max_sequences=32, max_tokens_per_step=64, blocks=400)
    shared = list(range(41))
    sequences = [of.add(request(prompt=[*shared, 100 + i], max_tokens=3)) for i in range(32)]
    prompts = sum(item.count for batch, _ in run(of) for item in batch.scheduled) - 32 * 2  # without what was decoded
    assert prompts == 42 + 31
    assert {sequence.cached for sequence in sequences[1:]} == {41}


def test_others_pass_one_that_waits_for_a_prefix() -> None:
    of = scheduler()
    shared = list(range(40))
    first, same, other = of.add(request(prompt=shared)), of.add(request(prompt=shared)), of.add(request(3))
    for _ in range(3):
        step(of)
    assert (first.status, same.status, other.status) == (Status.RUNNING, Status.WAITING, Status.RUNNING)
    step(of)
    assert (same.status, same.cached) == (Status.RUNNING, 39)


def test_a_prefix_is_computed_by_the_next_one_when_its_first_owner_leaves_or_stalls() -> None:
    for stalls in (False, True):
        of = scheduler()
        shared = list(range(40))
        first, same = of.add(request(prompt=shared)), of.add(request(prompt=shared))
        step(of)
        if stalls:
            of.pause(first, True)
        else:
            of.cancel(first)
        step(of)
        assert (same.status, same.cached) == (Status.RUNNING, 16)
        list(run(of))
        assert same.finish == "length"


def test_cancelling_frees_everything_at_any_moment() -> None:
    of = scheduler(adapter_slots=1)
    running, computing, waiting = (of.add(request(12, adapter=adapter("a"))) for _ in range(3))
    step(of)
    of.cancel(running)
    batch = of.schedule()
    assert computing in counts(batch)
    of.cancel(computing)
    of.cancel(computing)
    of.check()
    events = of.update(batch, [SampledToken(7)] * len(batch.sampling))
    assert computing not in {event.sequence for event in events}
    of.cancel(waiting)
    of.check()
    assert {sequence.finish for sequence in (running, computing, waiting)} == {"cancelled"}
    assert not of.has_work
    assert of.blocks.available == 100


def test_what_a_cancelled_sequence_was_computing_is_not_known() -> None:
    of = scheduler()
    first = of.add(request(prompt=list(range(12))))
    batch = of.schedule()
    of.cancel(first)
    of.update(batch, [SampledToken(7)])
    again = of.add(request(prompt=list(range(12))))
    step(of)
    assert again.cached == 0


def test_a_failed_forward_pass_ends_its_batch_and_leaves_nothing_in_the_cache() -> None:
    of = scheduler(max_sequences=2)
    first, second, third = (of.add(request(prompt=[i] * 8)) for i in range(3))
    error = MemoryError()
    events = of.fail(of.schedule(), error)
    assert [(event.sequence, event.finish, event.error) for event in events] == [
        (first, "error", error),
        (second, "error", error),
    ]
    of.check()
    again = of.add(request(prompt=[0] * 8))
    step(of)
    assert (again.cached, third.status) == (0, Status.RUNNING)


def test_a_paused_sequence_is_not_computed_and_gives_way_to_anyone() -> None:
    of = scheduler(max_sequences=2, adapter_slots=1)
    stalled = of.add(request(adapter=adapter("a")))
    step(of)
    of.pause(stalled, True)
    assert not of.has_work
    other = of.add(request(adapter=adapter("b"), priority=5))
    batch, _ = step(of)
    assert list(counts(batch)) == [other]
    assert (stalled.status, stalled.preemptions) == (Status.WAITING, 1)
    of.cancel(other)
    of.pause(stalled, False)
    list(run(of))
    assert stalled.generated == 50


def test_a_paused_sequence_keeps_its_blocks_while_nobody_needs_them() -> None:
    of = scheduler()
    stalled, other = of.add(request()), of.add(request())
    step(of)
    of.pause(stalled, True)
    for _ in range(5):
        step(of)
    assert (stalled.status, stalled.generated, other.generated) == (Status.RUNNING, 1, 6)


@pytest.mark.parametrize("short_of", ["seats", "blocks"])
def test_paused_sequences_block_nobody(short_of: str) -> None:
    of = scheduler(max_sequences=2) if short_of == "seats" else scheduler(blocks=6)
    stalled = [of.add(request(8)), of.add(request(8))]
    step(of)
    for sequence in stalled:
        of.pause(sequence, True)
    other = of.add(request(20, 3, priority=9))
    list(run(of))
    assert other.finish == "length"


def test_a_paused_sequence_gives_its_blocks_to_one_that_decodes() -> None:
    of = scheduler(blocks=6)
    stalled, other = of.add(request(8)), of.add(request(8, 14))
    step(of)
    of.pause(stalled, True)
    list(run(of))
    assert (other.generated, other.preemptions, stalled.preemptions) == (14, 0, 1)


def test_an_earlier_request_of_equal_priority_takes_nobodys_seat() -> None:
    of = scheduler(max_sequences=1)
    earlier, later = of.add(request()), of.add(request())
    of.pause(earlier, True)
    step(of)
    of.pause(earlier, False)
    step(of)
    assert (earlier.status, later.status, later.preemptions) == (Status.WAITING, Status.RUNNING, 0)


def test_adapters_are_loaded_once_and_shared() -> None:
    of = scheduler(adapter_slots=2)
    same = [of.add(request(2, adapter=Adapter("a", Path(folder)))) for folder in ("here", "there")]
    base = of.add(request(2))
    batch, _ = step(of)
    assert batch.loads == ((0, same[0].request.adapter),)
    assert [sequence.slot for sequence in (*same, base)] == [0, 0, -1]
    assert step(of)[0].loads == ()


def test_one_whose_adapter_finds_no_slot_is_passed_over_but_not_for_ever() -> None:
    of = scheduler(adapter_slots=1, max_sequences=3)
    of.add(request(2, 4, adapter=adapter("a")))
    step(of)
    waits = of.add(request(2, 4, adapter=adapter("b")))
    base = of.add(request(2, 4))
    step(of)
    assert (waits.status, base.status) == (Status.WAITING, Status.RUNNING)
    for _ in range(20):  # a stream of requests for the adapter that is resident
        of.add(request(2, 4, adapter=adapter("a")))
        step(of)
    assert waits.status is Status.FINISHED


def test_a_pinned_adapter_stays_while_others_take_turns() -> None:
    of = scheduler(adapter_slots=2)
    of.slots.repin({"a"})
    loaded = []
    for digest in "abcdabca":
        of.add(request(2, 1, adapter=adapter(digest)))
        loaded += [each.digest for batch, _ in run(of) for _, each in batch.loads]
    assert loaded == list("abcdbc")


def test_a_rejected_adapter_ends_all_that_use_it_and_no_one_else() -> None:
    of = scheduler()
    bad = [of.add(request(2, adapter=adapter("bad"))) for _ in range(2)]
    good = of.add(request(2, adapter=adapter("good")))
    batch = of.schedule()
    left, events = of.reject(batch, bad[0].slot, CallerError("no"))
    assert [event.sequence for event in events] == bad
    assert [item.sequence for item in left.scheduled] == [good]
    of.update(left, [SampledToken(7)])
    of.check()
    assert of.slots.resident == ("good",)


def test_forced_tokens_are_appended_and_computed_with_the_next_one() -> None:
    of = scheduler()
    sequence = of.add(request(5, mask=Forcing([11, 12, 13, 14, 15])))
    _, [event] = step(of)
    assert [token.token for token in event.tokens] == [7, 11, 12, 13, 14, 15]
    batch, [event] = step(of)
    assert counts(batch) == {sequence: 6}
    assert [token.token for token in event.tokens] == [7]


def test_forced_tokens_stop_at_the_limit_and_at_a_stop_id() -> None:
    of = scheduler()
    short = of.add(request(2, 3, mask=Forcing([11, 12, 13, 14])))
    stopped = of.add(request(2, 9, mask=Forcing([11, 12, 13]), stop_ids=frozenset({12})))
    step(of)
    assert (short.tokens[2:], short.finish, short.limit) == ([7, 11, 12], "length", "max_tokens")
    assert (stopped.tokens[2:], stopped.finish) == ([7, 11, 12], "stop")


def test_an_answer_that_is_complete_with_its_last_token_stops() -> None:
    of = scheduler()
    exact = of.add(request(2, 3, mask=Forcing([11, 12], finished=True)))
    cut = of.add(request(2, 2, mask=Forcing([11, 12], finished=True)))
    at_once = of.add(request(2, 1, mask=Forcing([], finished=True)))
    step(of)
    assert [(each.finish, each.limit) for each in (exact, cut, at_once)] == [
        ("stop", None),
        ("length", "max_tokens"),
        ("stop", None),
    ]


def test_with_log_probabilities_every_token_is_sampled() -> None:
    of = scheduler()
    mask = Forcing([11, 12])
    sequence = of.add(request(2, 3, mask=mask, logprobs=0))
    list(run(of))
    assert (sequence.tokens[2:], mask.calls) == ([7, 7, 7], 0)


def test_a_grammar_that_fails_ends_its_own_request() -> None:
    of = scheduler()
    error = CallerError("too complex")
    bad, good = of.add(request(2, mask=Forcing([], error=error))), of.add(request(2))
    _, events = step(of)
    assert [(event.sequence, event.error) for event in events] == [(bad, error), (good, None)]
    assert good.status is Status.RUNNING


def test_a_choice_that_is_an_exception_ends_its_own_request() -> None:
    of = scheduler()
    bad, good = of.add(request(2)), of.add(request(2))
    error = CallerError("too complex")
    bad_event, good_event = of.update(of.schedule(), [error, SampledToken(7)])
    assert (bad_event.finish, bad_event.error, bad.finish) == ("error", error, "error")
    assert (good_event.finish, good.tokens[-1]) == (None, 7)


def test_a_prompt_all_of_which_is_cached_still_computes_its_last_token() -> None:
    of = scheduler()
    of.add(request(prompt=list(range(8)), max_tokens=1))
    step(of)
    again = of.add(request(prompt=list(range(8)), max_tokens=1))
    batch, [event] = step(of)
    assert (counts(batch)[again], again.cached, event.finish) == (1, 7, "length")
    assert len(batch.copies) == 1


def test_an_answer_is_found_by_the_request_that_continues_it() -> None:
    of = scheduler()
    first = of.add(request(5, 6))
    list(run(of))
    follow = of.add(request(prompt=[*first.tokens, 1, 2, 3]))
    step(of)
    assert follow.cached == len(first.tokens) - 1  # the last token of an answer is never computed


@pytest.mark.parametrize("token", [-1, 50, 2**31])
def test_a_prompt_with_a_token_that_there_is_not_is_refused(token: int) -> None:
    """A decoder reads the embedding at that place, wherever it leads."""
    tokens = scheduler(vocabulary=50)
    with pytest.raises(CallerError, match=f"token {token}; this model has tokens 0 to 49"):
        tokens.add(request(prompt=[3, token, 4]))
    tokens.add(request(prompt=[0, 49]))


def test_short_prompts_do_not_wait_for_the_end_of_long_ones() -> None:
    of = scheduler(max_sequences=8, blocks=200)
    long = [of.add(request(length)) for length in (100, 90)]
    step(of)
    short = [of.add(request(length)) for length in (5, 7)]
    batch, events = step(of)
    assert counts(batch) == {long[0]: 8, short[0]: 5, short[1]: 3}
    assert [event.sequence for event in events] == [short[0]]
    step(of)
    assert short[1].generated == 1
    assert long[1].status is Status.WAITING
    while not long[1].generated:
        step(of)
    assert long[0].generated > 1


def test_a_long_prompt_goes_on_however_many_short_ones_come() -> None:
    of = scheduler(max_sequences=8, max_waiting=500, context_length=400, blocks=400)
    long = of.add(request(160))
    steps = 0
    while not long.generated:
        for _ in range(3):
            of.add(request(12, max_tokens=1))
        batch, _ = step(of)
        assert sum(counts(batch).values()) <= 16
        steps += 1
    assert steps <= 160 / 8 + 1


def test_a_less_urgent_prompt_gets_nothing_of_what_an_urgent_one_lacks() -> None:
    of = scheduler()
    urgent = of.add(request(100, priority=-1))
    step(of)
    later = of.add(request(5))
    batch, _ = step(of)
    assert counts(batch) == {urgent: 16}
    assert later.status is Status.WAITING
