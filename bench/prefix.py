"""B4: 32 requests that share 1,000 tokens, beside ourselves without the cache; and its cost where nothing is shared."""

from __future__ import annotations

import time

from bench.harness import Figure, alternate
from bench.models import Options, answers, engine, prompts

SHARED, OWN, ANSWER, COUNT = 1000, 20, 8, 32


def run(quick: bool) -> list[Figure]:
    on, off = engine(Options(blocks=3200)), engine(Options(blocks=3200, prefix_cache=False))
    shared = prompts([SHARED])[0]
    alike = [shared + own for own in prompts([OWN] * COUNT)]
    different = prompts([160] * COUNT)
    counts = [ANSWER] * COUNT
    assert answers(on, alike, counts) == answers(off, alike, counts), "cached differs from uncached"
    print("the same tokens with and without the cache")

    def rate(of: object, given: list[list[int]]) -> float:
        started = time.perf_counter()
        answers(of, given, counts)  # type: ignore[arg-type]
        return len(given) / (time.perf_counter() - started)

    with_hits = alternate(lambda: rate(on, alike), lambda: rate(off, alike), 2 if quick else 5)
    # Pools that have all been used before: the system gives memory at the first touch, which takes time of its own.
    small_on, small_off = engine(Options(blocks=700)), engine(Options(blocks=700, prefix_cache=False))
    for _ in range(3):
        rate(small_on, different), rate(small_off, different)
    without = alternate(lambda: rate(small_on, different), lambda: rate(small_off, different), 9 if quick else 21)
    return [
        Figure(f"B4 {SHARED} shared tokens x {COUNT}", with_hits[0], "requests/s", with_hits[1], "cache off", goal=4.0),
        Figure("B4 nothing shared", without[0], "requests/s", without[1], "cache off", goal=0.99),
    ]
