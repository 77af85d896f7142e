"""The engine's bookkeeping, with a model whose next token is a hash of all that its cache holds of a sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from framework.engine.adapter import Adapter
from framework.engine.llm_engine import LLMEngine
from framework.engine.scheduler import Batch, EngineLimits, Event
from framework.engine.sequence import FinishReason, Request, SampledToken, SamplingParams, Sequence, Status
from framework.errors import Busy, CallerError

VOCABULARY = 48
STOP = 0
ADAPTERS = [Adapter(digest, Path(digest)) for digest in ("a", "b", "c")]
BROKEN = Adapter("broken", Path("broken"))


def state_after(values: list[int], token: int, salt: str, adapter: str) -> int:
    """What the cache holds of a token: it depends on everything before it."""
    return hash((tuple(values), token, salt, adapter))


def choice(values: list[int]) -> int:
    return hash(tuple(values)) % VOCABULARY


class PagedModel:
    """Keeps its states in blocks, and reads all it knows of a sequence through the block table."""

    def __init__(self, limits: EngineLimits) -> None:
        self.cache = np.zeros((limits.blocks, limits.block_size), dtype=np.int64)
        self.adapters: dict[int, str] = {}
        self.budget = limits.max_tokens_per_step
        self.computed = 0
        self.failing = False
        self.during: Callable[[], None] = lambda: None

    def load(self, slot: int, adapter: Adapter) -> None:
        if adapter == BROKEN:
            self.adapters[slot] = "half of it"
            raise CallerError("The adapter is broken.", field="adapter")
        self.adapters[slot] = adapter.digest

    def forward(self, batch: Batch) -> Any:
        sources = {source for source, _ in batch.copies}
        targets = [target for _, target in batch.copies]
        assert len(set(targets)) == len(targets)
        assert not sources & set(targets), "the order of copies would matter"
        for source, target in reversed(batch.copies):
            self.cache[target] = self.cache[source]
        assert all(item.count > 0 for item in batch.scheduled)
        assert 0 < sum(item.count for item in batch.scheduled) <= self.budget
        sampled = {item.sequence for item in batch.sampling}
        logits = []
        for place, item in enumerate(batch.scheduled):
            if self.failing and place == len(batch.scheduled) // 2:
                self.failing = False
                raise MemoryError("out of memory in the middle of a batch")
            values = self._compute(item.sequence, item.count)
            if item.sequence in sampled:
                logits.append(np.eye(VOCABULARY, dtype=np.float32)[choice(values)])
        self.during()
        self.during = lambda: None
        return np.array(logits)

    def _compute(self, sequence: Sequence, count: int) -> list[int]:
        size, table = self.cache.shape[1], sequence.blocks
        adapter = self.adapters[sequence.slot] if sequence.request.adapter else ""
        values = [int(self.cache[table[p // size], p % size]) for p in range(sequence.computed)]
        for position in range(sequence.computed, sequence.computed + count):
            values.append(state_after(values, sequence.tokens[position], sequence.request.salt, adapter))
            self.cache[table[position // size], position % size] = values[-1]
        self.computed += count
        return values


class Highest:
    """Takes the highest logit, whatever the mask allows."""

    def sample(self, logits: Any, sequences: Any, masks: Any) -> list[SampledToken | Exception]:
        assert len(logits) == len(sequences) == len(masks)
        chosen: list[SampledToken | Exception] = []
        for row, sequence, mask in zip(logits, sequences, masks, strict=True):
            token = int(row.argmax())
            if isinstance(mask, Exception):
                chosen.append(mask)
                continue
            if mask is not None:
                token = sequence.request.mask.accept(token, lambda row=row: row)
            chosen.append(SampledToken(token))
        return chosen


class Grammar:
    """After a token that three divides two more must follow; a token that seven divides ends the answer."""

    def __init__(self, fails_at: int = -1, fails_in: str = "") -> None:
        self.last = 1
        self.calls = 0
        self.fails_at, self.fails_in = fails_at, fails_in

    def _called(self, name: str) -> None:
        if name == self.fails_in:
            self.calls += 1
            if self.calls > self.fails_at:
                raise CallerError("The grammar became too complex.", field="response_format")

    def allowed(self) -> np.ndarray:
        self._called("allowed")
        return np.ones(VOCABULARY, dtype=np.bool_)

    def accept(self, token: int, logits: object) -> int:
        self.last = token
        return token

    def forced(self) -> list[int]:
        self._called("forced")
        return forced_after(self.last)

    @property
    def finished(self) -> bool:
        return self.last % 7 == 0


def forced_after(token: int) -> list[int]:
    return [token + 1, token + 2] if token % 3 == 0 else []


def alone(request: Request, limits: EngineLimits) -> tuple[list[int], FinishReason]:
    """What a request must get, whatever else is going on: no blocks, no batches, no cache."""
    tokens = list(request.prompt)
    values: list[int] = []
    adapter = request.adapter.digest if request.adapter else ""
    new: list[int] = []

    def known() -> list[int]:
        for token in tokens[len(values) :]:
            values.append(state_after(values, token, request.salt, adapter))
        return values

    while True:
        token = choice(known())
        constrained = request.mask is not None
        follow = forced_after(token) if constrained and request.params.logprobs is None else []
        done = constrained and token % 7 == 0
        for place, each in enumerate([token] if done else [token, *follow]):
            tokens.append(each)
            new.append(each)
            if each in request.params.stop_ids or (done and place == 0):
                return new, "stop"
            longest = min(limits.context_length, limits.room + 1)
            if len(new) >= request.params.max_tokens or len(tokens) >= longest:
                return new, "length"


def request(prompt: list[int], max_tokens: int = 6, **rest: Any) -> Request:
    params = SamplingParams(max_tokens, stop_ids=frozenset({STOP}), logprobs=rest.pop("logprobs", None))
    return Request(tuple(prompt), params, **rest)


class Run:
    """An engine with its fakes, and all events so far."""

    def __init__(self, limits: EngineLimits) -> None:
        self.model = PagedModel(limits)
        self.engine = LLMEngine(self.model, Highest(), limits)
        self.tokens: dict[Sequence, list[int]] = {}
        self.ends: dict[Sequence, Event] = {}

    def add(self, asked: Request) -> Sequence:
        sequence = self.engine.add(asked)
        self.tokens[sequence] = []
        return sequence

    def step(self) -> None:
        had_work = self.engine.has_work
        before = self.model.computed, len(self.ends)
        for event in self.engine.step():
            assert event.sequence not in self.ends, "an event after the end"
            assert event.tokens or event.finish
            assert (event.finish == "error") == (event.error is not None)
            self.tokens[event.sequence] += [token.token for token in event.tokens]
            if event.finish:
                self.ends[event.sequence] = event
        self.engine.idle()
        assert not had_work or (self.model.computed, len(self.ends)) > before, "a step with work to do did nothing"

    def finish(self, most: int = 20_000) -> None:
        steps = 0
        while self.engine.has_work:
            self.step()
            steps += 1
            assert steps < most, "the engine runs in circles"

    def verify(self) -> None:
        """Everyone got what they would have got alone, and nothing is held any more."""
        limits = self.engine.limits
        for sequence, tokens in self.tokens.items():
            assert sequence.status is Status.FINISHED
            want, finish = alone(sequence.request, limits)
            assert tokens == want[: len(tokens)]
            if sequence.finish in ("stop", "length"):
                assert (tokens, sequence.finish) == (want, finish)
                assert sequence.tokens == [*sequence.request.prompt, *tokens]
                assert (sequence.limit is None) == (finish == "stop")
                assert sequence.arrived <= sequence.started <= sequence.first_token <= sequence.ended
            assert (sequence in self.ends) == (sequence.finish != "cancelled")
        self.engine.idle()
        assert self.engine.blocks_used == 0


PREFIXES = [[(7 * i + j) % VOCABULARY for i in range(33)] for j in range(2)]


class EngineMachine(RuleBasedStateMachine):
    """Requests come, are cancelled, paused and resumed, forward passes fail: each still gets what it gets alone."""

    sequences = Bundle("sequences")

    @initialize(
        blocks=st.integers(3, 14),
        block_size=st.integers(1, 5),
        seats=st.integers(1, 5),
        spare=st.integers(0, 9),
        slots=st.integers(1, 2),
        cache=st.sampled_from([True, True, True, False]),
        context=st.integers(8, 44),
    )
    def start(
        self, blocks: int, block_size: int, seats: int, spare: int, slots: int, cache: bool, context: int
    ) -> None:
        self.run = Run(
            EngineLimits(
                blocks=blocks,
                context_length=context,
                max_sequences=seats,
                max_tokens_per_step=seats + spare,
                max_waiting=12,
                block_size=block_size,
                adapter_slots=slots,
                prefix_cache=cache,
            )
        )

    @rule(
        target=sequences,
        prefix=st.sampled_from(PREFIXES),
        length=st.integers(0, 33),
        tail=st.lists(st.integers(0, 1), max_size=3),
        max_tokens=st.integers(1, 14),
        adapter=st.sampled_from([None, None, *ADAPTERS]),
        constrained=st.booleans(),
        logprobs=st.sampled_from([None, None, 0]),
        salt=st.sampled_from(["", "", "tenant"]),
        priority=st.sampled_from([0, 0, 1, -1]),
    )
    def add(
        self, prefix: list[int], length: int, tail: list[int], max_tokens: int, constrained: bool, **rest: Any
    ) -> Sequence | None:
        asked = request(prefix[:length] + tail, max_tokens, mask=Grammar() if constrained else None, **rest)
        used = self.run.engine.blocks_used
        try:
            return self.run.add(asked)
        except CallerError:
            assert not 0 < len(asked.prompt) <= self.run.engine.limits.longest_prompt
        except Busy:
            scheduler, limits = self.run.engine.scheduler, self.run.engine.limits
            assert len(scheduler.running) + len(scheduler.waiting) == limits.max_sequences + limits.max_waiting
        assert self.run.engine.blocks_used == used
        return None

    @rule(times=st.integers(1, 6))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.run.step()

    @rule(sequence=sequences)
    def cancel(self, sequence: Sequence | None) -> None:
        if sequence is not None:
            self.run.engine.cancel(sequence)

    @rule(sequence=sequences)
    def cancel_while_computed(self, sequence: Sequence | None) -> None:
        if sequence is not None:
            self.run.model.during = lambda: self.run.engine.cancel(sequence)
            self.run.step()

    @rule(sequence=sequences, paused=st.booleans())
    def pause(self, sequence: Sequence | None, paused: bool) -> None:
        if sequence is not None:
            self.run.engine.pause(sequence, paused)

    @rule()
    def fail(self) -> None:
        self.run.model.failing = True
        self.run.step()
        self.run.model.failing = False

    @invariant()
    def consistent(self) -> None:
        if hasattr(self, "run"):
            self.run.engine.idle()

    def teardown(self) -> None:
        if not hasattr(self, "run"):
            return
        for sequence in self.run.tokens:
            self.run.engine.pause(sequence, False)
        self.run.finish()
        self.run.verify()
        self.run.engine.close()


EngineMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
test_requests_get_what_they_would_get_alone = EngineMachine.TestCase


def plain_limits(**changes: Any) -> EngineLimits:
    values = {"blocks": 60, "block_size": 4, "context_length": 80, "max_sequences": 8, "max_tokens_per_step": 32}
    return EngineLimits(**{**values, "adapter_slots": 2, **changes})


def prompt(number: int, length: int = 9) -> list[int]:
    return [(number * 5 + place) % VOCABULARY for place in range(length)]


@pytest.fixture
def engine() -> Iterator[Run]:
    made = Run(plain_limits())
    yield made
    made.finish()
    made.verify()
    made.engine.close()


@pytest.mark.parametrize("length", [k * 4 + around for k in (1, 2, 3) for around in (-1, 0, 1)])
def test_a_cached_prefix_changes_no_token_wherever_it_ends(engine: Run, length: int) -> None:
    engine.add(request(prompt(1, length), 9))
    engine.finish()
    for tail in ([], [90], [91, 2, 3, 4, 5]):
        follower = engine.add(request(prompt(1, length) + tail, 9))
        engine.finish()
        assert follower.cached == min(length, length + len(tail) - 1)


def test_running_out_of_blocks_changes_no_token() -> None:
    engine = Run(plain_limits(blocks=9))
    sequences = [engine.add(request(prompt(number), 20)) for number in range(5)]
    engine.finish()
    engine.verify()
    assert sum(sequence.preemptions for sequence in sequences) > 0
    engine.engine.close()


def test_prompts_of_other_salts_are_computed_anew(engine: Run) -> None:
    sequences = [engine.add(request(prompt(1, 20), 4, salt=salt)) for salt in "abab"]
    engine.finish()
    assert [sequence.cached for sequence in sequences] == [0, 0, 19, 19]


@pytest.mark.parametrize(("name", "after"), [("allowed", 0), ("allowed", 1), ("forced", 0), ("forced", 1)])
def test_a_grammar_that_fails_ends_only_its_request(engine: Run, name: str, after: int) -> None:
    bad = engine.add(request([3, 1], 40, mask=Grammar(after, name)))
    good = [engine.add(request(prompt(number), mask=Grammar())) for number in range(2)]
    engine.finish()
    assert isinstance(engine.ends[bad].error, CallerError)
    assert {sequence.finish for sequence in good} <= {"stop", "length"}


def test_an_adapter_that_can_not_be_loaded_ends_only_its_requests(engine: Run) -> None:
    bad = [engine.add(request(prompt(number), adapter=BROKEN)) for number in range(2)]
    good = [engine.add(request(prompt(number), adapter=adapter)) for number, adapter in enumerate([None, *ADAPTERS])]
    engine.finish()
    assert [str(engine.ends[sequence].error) for sequence in bad] == ["The adapter is broken."] * 2
    assert {sequence.finish for sequence in good} <= {"stop", "length"}
    assert BROKEN.digest not in engine.engine.scheduler.slots.resident


def test_a_step_all_of_which_was_refused_computes_nothing(engine: Run) -> None:
    engine.add(request(prompt(1), adapter=BROKEN))
    engine.step()
    assert engine.model.computed == 0
    assert not engine.engine.has_work


def test_a_failed_forward_pass_ends_its_batch_and_the_engine_goes_on(
    engine: Run, caplog: pytest.LogCaptureFixture
) -> None:
    batch = [engine.add(request(prompt(number))) for number in range(2)]
    engine.model.failing = True
    engine.step()
    assert all(isinstance(engine.ends[sequence].error, MemoryError) for sequence in batch)
    assert "a forward pass failed" in caplog.text
    again = engine.add(request(prompt(0)))
    engine.step()
    assert again.cached == 0


def test_a_thousand_cancelled_requests_leave_nothing_behind(engine: Run) -> None:
    for number in range(1000):
        sequence = engine.add(request(prompt(number), 40, adapter=ADAPTERS[number % 3]))
        if number % 3:
            engine.step()
        engine.engine.cancel(sequence)
    engine.step()
    assert engine.engine.blocks_used == 0


def test_a_step_without_work_gives_nothing(engine: Run) -> None:
    assert engine.engine.step() == []
    assert not engine.engine.has_work
    assert (engine.engine.blocks_used, engine.engine.blocks_total) == (0, 60)


def test_the_self_check_sees_a_lost_block() -> None:
    engine = Run(plain_limits())
    sequence = engine.add(request(prompt(1), 40))
    engine.step()
    sequence.blocks.pop()
    with pytest.raises(AssertionError, match="a block leaked"):
        engine.engine.idle()
    engine.engine.close()
