"""Masks beside the forward pass: the right one for each sequence, faults in their own place, no idle thread."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from framework.engine.masks import MaskWorkers
from framework.engine.sequence import Request, SamplingParams, Sequence


class Numbered:
    """Allows the token of its number; a negative one raises."""

    finished = False

    def __init__(self, number: int, gate: threading.Event | None = None) -> None:
        self.number = number
        self.gate = gate
        self.threads: set[str] = set()

    def allowed(self) -> NDArray[np.bool_]:
        self.threads.add(threading.current_thread().name)
        if self.gate is not None:
            assert self.gate.wait(10)
        if self.number < 0:
            raise KeyError(self.number)
        mask = np.zeros(10, dtype=np.bool_)
        mask[self.number] = True
        return mask

    def accept(self, token: int, logits: Callable[[], NDArray[np.float32]]) -> int:
        return token

    def forced(self) -> list[int]:
        return []


def sequence(mask: Numbered | None) -> Sequence:
    return Sequence(Request((1,), SamplingParams(max_tokens=1), mask))


def mask_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lectern-masks")]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.one_of(st.none(), st.integers(-1, 9)), max_size=12), st.integers(1, 4))
def test_each_sequence_gets_its_own_mask_or_its_own_fault(numbers: list[int | None], threads: int) -> None:
    workers = MaskWorkers(threads)
    masks = workers.compute([sequence(None if number is None else Numbered(number)) for number in numbers]).result()
    workers.close()
    assert len(masks) == len(numbers)
    for number, mask in zip(numbers, masks, strict=True):
        if number is None:
            assert mask is None
        elif number < 0:
            assert isinstance(mask, KeyError)
        else:
            assert isinstance(mask, np.ndarray)
            assert np.flatnonzero(mask).tolist() == [number]


def test_the_caller_goes_on_while_masks_are_computed() -> None:
    gate, workers = threading.Event(), MaskWorkers()
    provider = Numbered(3, gate)
    pending = workers.compute([sequence(provider)])
    gate.set()  # were it computed in this thread, we would not be here
    assert isinstance(pending.result()[0], np.ndarray)
    assert threading.current_thread().name not in provider.threads
    workers.close()


def test_no_thread_is_there_before_a_mask_is_asked_for_nor_after_the_end() -> None:
    before = mask_threads()
    workers = MaskWorkers()
    assert workers.compute([sequence(None)] * 3).result() == [None] * 3
    assert mask_threads() == before
    workers.compute([sequence(Numbered(1))]).result()
    assert len(mask_threads()) > len(before)
    workers.close()
    assert mask_threads() == before
    with pytest.raises(RuntimeError):
        workers.compute([sequence(Numbered(1))])
