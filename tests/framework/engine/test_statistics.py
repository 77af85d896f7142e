from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.engine import statistics
from framework.engine.adapter import Adapter
from framework.engine.sequence import FinishReason, Request, SamplingParams, Sequence
from framework.engine.statistics import Recorder, Statistics, Times


def ended(
    finish: FinishReason = "stop", generated: int = 5, adapter: str | None = None, cached: int = 0, at: float = 100.0
) -> Sequence:
    """A request of ten tokens that came at a time, waited 1 s, gave its first token after 3 s, then two a second."""
    named = Adapter(adapter, Path()) if adapter else None
    sequence = Sequence(Request(tuple(range(10)), SamplingParams(max_tokens=9), adapter=named))
    sequence.tokens += [0] * generated
    sequence.finish, sequence.cached = finish, cached
    sequence.arrived, sequence.started, sequence.first_token = at, at + 1, at + 3
    sequence.ended = at + 3 + (generated - 1) / 2
    return sequence


def snapshot(recorder: Recorder) -> Statistics:
    return recorder.snapshot([], 0, (0, 0))


def test_times_are_those_of_the_requests() -> None:
    recorder = Recorder()
    recorder.ended(ended())
    total = snapshot(recorder).total
    assert (total.queue.p50, total.ttft.p50, total.tpot.p50) == (1.0, 3.0, 0.5)
    assert (total.finished, total.prompt_tokens, total.generated_tokens) == (1, 10, 5)


def test_each_end_is_counted_as_what_it_was_and_by_adapter() -> None:
    recorder = Recorder()
    ends: list[tuple[FinishReason, str | None]] = [
        ("stop", None),
        ("length", "a"),
        ("cancelled", "a"),
        ("cancelled", None),
    ]
    for finish, adapter in ends:
        recorder.ended(ended(finish, adapter=adapter, cached=1))
    recorder.ended(ended("cancelled", adapter="b"), failed=True)
    figures = snapshot(recorder)
    assert (figures.total.finished, figures.total.cancelled, figures.total.failed) == (2, 2, 1)
    assert figures.total.cache_hit_rate == pytest.approx(4 / 50)
    assert {name: (f.finished, f.cancelled, f.failed) for name, f in figures.adapters.items()} == {
        "a": (1, 1, 0),
        "b": (0, 0, 1),
    }


def test_a_request_that_never_ran_has_no_times_and_no_prompt() -> None:
    recorder, sequence = Recorder(), ended("cancelled", generated=0)
    sequence.started = sequence.first_token = 0.0
    recorder.ended(sequence)
    total = snapshot(recorder).total
    assert (total.cancelled, total.prompt_tokens, total.queue, total.ttft) == (1, 0, Times(), Times())


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200))
def test_percentiles_are_values_that_so_many_do_not_exceed(seconds: list[float]) -> None:
    times = Times.of(seconds)
    for value, share in ((times.p50, 0.5), (times.p95, 0.95)):
        assert value in seconds
        assert sum(other <= value for other in seconds) >= share * (len(seconds) - 1)
        assert sum(other >= value for other in seconds) >= (1 - share) * (len(seconds) - 1)


def test_only_a_window_is_kept_and_only_so_many_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "ADAPTERS", 3)
    recorder = Recorder()
    for number in range(statistics.WINDOW + 10):
        recorder.ended(ended(adapter=str(number % 5)))
    assert len(recorder._total.queue) == statistics.WINDOW
    assert set(snapshot(recorder).adapters) == {"4", "0", "1"}  # the latest ones


def test_the_rate_is_that_of_the_last_ten_whole_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.5
    monkeypatch.setattr(statistics.time, "monotonic", lambda: now)
    recorder = Recorder()
    for second in range(30):
        now = 1000.5 + second
        recorder.generated(40)
        recorder.generated(2)
    assert snapshot(recorder).tokens_per_second == 42
    now += 5
    assert snapshot(recorder).tokens_per_second == pytest.approx(42 * 6 / 10)
    now += 100
    assert snapshot(recorder).tokens_per_second == 0


def test_a_snapshot_is_json_and_may_be_taken_while_others_write() -> None:
    recorder, stop = Recorder(), threading.Event()

    def write() -> None:
        while not stop.is_set():
            recorder.ended(ended(adapter="a"))
            recorder.generated(1)

    thread = threading.Thread(target=write)
    thread.start()
    taken = [snapshot(recorder) for _ in range(200)]
    stop.set()
    thread.join()
    assert all(figures.total.finished >= figures.adapters["a"].finished for figures in taken if figures.adapters)
    assert json.loads(json.dumps(taken[-1].to_dict()))["adapters"].keys() <= {"a"}
