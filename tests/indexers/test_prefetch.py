from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from indexers.prefetch import prefetched


def names() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def test_the_same_items_in_the_same_order() -> None:
    assert list(prefetched(iter(range(1000)), 4)) == list(range(1000))
    assert "lectern-prefetch" not in names()


def test_an_error_comes_after_the_items_before_it() -> None:
    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("third")

    got: list[int] = []
    with pytest.raises(ValueError, match="third"):
        got.extend(prefetched(broken(), 1))
    assert got == [1, 2]


def test_leaving_early_ends_the_thread_and_closes_nothing_twice() -> None:
    made: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            made.append(len(made))
            yield made[-1]

    items = prefetched(endless(), 3)
    assert [next(items), next(items)] == [0, 1]
    items.close()
    assert "lectern-prefetch" not in names()
    assert len(made) <= 7
