"""The whole engine on a small model under random load: invariants hold, nothing leaks, company changes nothing.

Each round makes an engine with a pool, limits and number formats of its own, lets requests arrive, be cancelled and
paused at random, checks the bookkeeping after every step, and compares what came out with each request alone.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.harness import Figure, Spread

if TYPE_CHECKING:
    from framework.engine.llm_engine import LLMEngine

CONTEXT = 160


def run(quick: bool) -> list[Figure]:
    from framework.engine.decoders import load_decoder
    from framework.testing.tiny_chat import write_tiny_chat

    seconds, rounds, requests = 20 if quick else 240, 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = write_tiny_chat(Path(name) / "model")
        adapters = [None, *written(Path(name), load_decoder(folder, "tiny", block_size=16, dtype="float32").linears)]
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            requests += play(folder, adapters, seed=rounds)
            rounds += 1
    print(f"{rounds} engines, {requests} answers in {seconds} s: each as it is alone, no block left over")
    return [Figure("answers compared", Spread((float(requests),)), "requests", goal=1.0)]


def written(folder: Path, linears: Any) -> list[Any]:
    from framework.engine.lora import identify
    from framework.testing.adapters import write_ia3, write_lora

    shapes = {name: shape for name, shape in linears.items() if name != "lm_head"}
    made = [write_lora(folder / f"lora {rank}", shapes, rank=rank, seed=rank) for rank in (1, 5, 16)]
    return [identify(path) for path in [*made, write_ia3(folder / "ia3", shapes)]]


def play(folder: Path, adapters: list[Any], seed: int) -> int:
    """One engine's life; the number of answers that were compared."""
    from framework.engine.sequence import Request, SamplingParams

    chance = np.random.default_rng(seed)
    formats = [("float32", "float32"), ("int8", "int8"), ("bfloat16", "bfloat16")][seed % 3]
    most = int(chance.integers(1, 12))
    crowded = make(
        folder, formats, int(chance.integers(4, 60)), most, int(chance.integers(most, 80)), int(chance.integers(1, 5))
    )
    beginnings = [chance.integers(2, 300, int(chance.integers(1, 60))).tolist() for _ in range(4)]
    kept: dict[Any, Any] = {}
    for number in range(int(chance.integers(5, 40))):
        prompt = beginnings[int(chance.integers(4))] + chance.integers(2, 300, int(chance.integers(1, 40))).tolist()
        prompt = prompt[: min(CONTEXT - 1, crowded.limits.room)]
        heat = float(chance.choice([0.0, 0.9]))
        params = SamplingParams(max_tokens=int(chance.integers(1, 30)), temperature=heat, seed=number)
        adapter = adapters[int(chance.integers(len(adapters)))]
        salt, priority = str(chance.integers(2)), int(chance.integers(3))
        sequence = crowded.add(Request(tuple(prompt), params, adapter=adapter, salt=salt, priority=priority))
        kept[sequence] = sequence.request
        for _ in range(int(chance.integers(0, 5))):
            disturb(crowded, kept, chance)
    for sequence in kept:
        crowded.pause(sequence, False)
    while crowded.has_work:
        step(crowded)
    assert crowded.blocks_used == 0, "blocks were left over"
    crowded.close()
    alone = make(folder, formats, 80, 1, 512, len(adapters), prefix_cache=False)
    for sequence, request in kept.items():
        again = alone.add(request)
        while alone.has_work:
            step(alone)
        length = len(sequence.tokens)
        assert sequence.tokens == again.tokens[:length], f"seed {seed}: request {sequence.number} differs from alone"
        assert length == len(again.tokens) or sequence.limit == "memory", f"seed {seed}: an answer ended early"
    alone.close()
    return len(kept)


def disturb(of: LLMEngine, kept: dict[Any, Any], chance: np.random.Generator) -> None:
    """A step, and now and then a reader that leaves or stalls."""
    step(of)
    sequences = list(kept)
    if not sequences:
        return
    one = sequences[int(chance.integers(len(sequences)))]
    what = chance.random()
    if what < 0.05:
        of.cancel(one)
        del kept[one]
    elif what < 0.25:
        of.pause(one, bool(chance.integers(2)))


def step(of: LLMEngine) -> None:
    for event in of.step():
        if event.error:
            raise event.error
    of.idle()


def make(
    folder: Path, formats: tuple[Any, Any], blocks: int, most: int, tokens: int, slots: int, prefix_cache: bool = True
) -> LLMEngine:
    from framework.engine.decoders import load_decoder
    from framework.engine.limits import EngineLimits
    from framework.engine.llm_engine import LLMEngine
    from framework.engine.lora import AdapterCache
    from framework.engine.model_runner import ModelRunner
    from framework.engine.sampler import Sampler

    decoder = load_decoder(
        folder, "tiny", block_size=16, dtype=formats[0], kv_dtype=formats[1], device="cpu", adapter_slots=slots
    )
    decoder.allocate(blocks)
    limits = EngineLimits(
        blocks=blocks, context_length=CONTEXT, max_sequences=most, max_tokens_per_step=tokens, adapter_slots=slots,
        prefix_cache=prefix_cache,
    )  # fmt: skip
    return LLMEngine(ModelRunner(decoder, 16, AdapterCache(2**26)), Sampler(), limits)
