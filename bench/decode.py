"""B2: decoding alone and 4, 16, 32 sequences in one batch, beside llama.cpp's batch calls on the same weights."""

from __future__ import annotations

import time

from bench.harness import Figure, alternate
from bench.models import LlamaCpp, Options, engine, prompts

PROMPT = 64
GOALS = {1: 1.0, 4: 1.0, 16: 4.0, 32: 4.0}


def run(quick: bool) -> list[Figure]:
    steps, figures = 24 if quick else 96, []
    for dtype in ("int8", "float32"):
        ours = engine(Options(dtype=dtype, kv_dtype="auto" if dtype == "int8" else "float32", prefix_cache=False))
        for count in GOALS:
            peer = LlamaCpp(count, PROMPT + steps + 2)
            given = prompts([PROMPT] * count)
            rates = alternate(
                lambda ours=ours, given=given: our_rate(ours, given, steps),
                lambda peer=peer, given=given: peer_rate(peer, given, steps),
                3 if quick else 5,
            )
            goal = GOALS[count] if dtype == "int8" else None
            figures.append(
                Figure(f"B2 decode {count} at once, {dtype}", rates[0], "tokens/s", rates[1], "llama.cpp", goal)
            )
    return figures


def our_rate(ours: object, given: list[list[int]], steps: int) -> float:
    """Tokens a second of whole steps: scheduling, forward pass, choice of tokens."""
    from framework.engine.llm_engine import LLMEngine
    from framework.engine.sequence import Request, SamplingParams

    assert isinstance(ours, LLMEngine)
    sequences = [ours.add(Request(tuple(prompt), SamplingParams(max_tokens=steps + 2))) for prompt in given]
    while any(not sequence.generated for sequence in sequences):
        ours.step()
    before = sum(sequence.generated for sequence in sequences)
    started = time.perf_counter()
    for _ in range(steps):
        ours.step()
    taken = time.perf_counter() - started
    made = sum(sequence.generated for sequence in sequences) - before
    for sequence in sequences:
        ours.cancel(sequence)
    return made / taken


def peer_rate(peer: LlamaCpp, given: list[list[int]], steps: int) -> float:
    peer.clear()
    last = [
        peer.compute([(token, place, number, place == len(prompt) - 1) for place, token in enumerate(prompt)])[0]
        for number, prompt in enumerate(given)
    ]
    started = time.perf_counter()
    for step in range(steps):
        last = peer.compute([(token, len(given[number]) + step, number, True) for number, token in enumerate(last)])
    return steps * len(given) / (time.perf_counter() - started)
