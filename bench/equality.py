"""Greedy answers of the float32 engine on the built-in model are transformers' own, on 300 mixed requests.

They come in groups: at any time and in any company, with shared beginnings of k blocks and one token more or less, in
a cache so small that requests lose their blocks, beside requests that are cancelled, and with adapters. The reference
sees each prompt with the answer so far; where its best token is another, its two best logits must lie within 1e-4.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.adapters import write_adapter
from bench.harness import Figure, Spread
from bench.models import Options, engine, folder, prompts

if TYPE_CHECKING:
    import torch

    from framework.engine.llm_engine import LLMEngine
    from framework.engine.sequence import SampledToken, Sequence

TIE, NEAR = 1e-4, 1e-3


def run(quick: bool) -> list[Figure]:
    share = 5 if quick else 1
    chance = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        adapters = [write_adapter(Path(name) / str(seed), seed) for seed in range(4)]
        roomy = engine(Options("float32", "float32", blocks=1500, adapter_slots=3))
        small = engine(Options("float32", "float32", blocks=24))
        answers: dict[Sequence, list[SampledToken]] = {}
        at_any_time(roomy, 140 // share, chance, answers)
        with_beginnings(roomy, 60 // share, answers)
        at_any_time(small, 50 // share, chance, answers, longest=150)
        lost = sum(sequence.preemptions for sequence in answers)
        at_any_time(roomy, 60 // share, chance, answers, adapters=[None, *adapters])
        assert lost > 0, "nobody lost a block"
        ties, worst = compare(answers)
    print(f"{len(answers)} answers, {sum(map(len, answers.values()))} tokens, {lost} times blocks were taken away")
    return [
        Figure("requests equal to transformers", Spread((float(len(answers)),)), "requests", goal=float(300 // share)),
        Figure("ties", Spread((float(ties),)), "tokens"),
        Figure("largest difference of a log-probability", Spread((worst,)), "nats", goal=NEAR, below=True),
    ]


def at_any_time(
    of: LLMEngine,
    count: int,
    chance: np.random.Generator,
    answers: dict[Any, Any],
    longest: int = 400,
    adapters: Any = (None,),
) -> None:
    """Requests that arrive between steps; every eighth or so is cancelled, and one more is sent for it."""
    from framework.engine.sequence import Request, SamplingParams

    lengths = chance.integers(1, longest, 2 * count).tolist()
    sent, given = 0, iter(prompts(lengths))
    while sent < count or of.has_work:
        if sent < count:
            params = SamplingParams(max_tokens=int(chance.integers(1, 28)), logprobs=2)
            sequence = of.add(
                Request(tuple(next(given)), params, adapter=adapters[sent % len(adapters)], salt=str(sent % 3))
            )
            if chance.random() < 0.12:
                collect(of, answers)
                of.cancel(sequence)
            else:
                answers[sequence] = []
                sent += 1
        for _ in range(int(chance.integers(0, 4))):
            collect(of, answers)
    of.idle()
    assert of.blocks_used == 0


def with_beginnings(of: LLMEngine, count: int, answers: dict[Any, Any]) -> None:
    """Prompts that share k blocks, one token less, one more."""
    from framework.engine.sequence import Request, SamplingParams

    whole, own = prompts([200])[0], prompts([30] * count)
    for number in range(count):
        shared = 16 * (1 + number // 3 % 9) + number % 3 - 1
        params = SamplingParams(max_tokens=10, logprobs=2)
        answers[of.add(Request(tuple(whole[:shared] + own[number]), params))] = []
        collect(of, answers)
    while of.has_work:
        collect(of, answers)


def collect(of: LLMEngine, answers: dict[Any, Any]) -> None:
    for event in of.step() if of.has_work else ():
        if event.error:
            raise event.error
        if event.sequence in answers:
            answers[event.sequence] += event.tokens


def compare(answers: dict[Any, Any]) -> tuple[int, float]:
    """Ties, and the largest difference of a log-probability."""
    import torch

    ties, worst, models = 0, 0.0, references()
    for sequence, tokens in answers.items():
        prompt = list(sequence.request.prompt)
        assert tokens, "a request got no token"
        rows = models(sequence.request.adapter, prompt + [t.token for t in tokens[:-1]])[len(prompt) - 1 :]
        expected = torch.log_softmax(rows.double(), dim=-1)
        for row, token in enumerate(tokens):
            best = int(rows[row].argmax())
            if best != token.token:
                gap = float(rows[row, best] - rows[row, token.token])
                assert gap < TIE, f"token {row} of request {sequence.number} differs by {gap} logits"
                ties += 1
            worst = max(worst, abs(token.logprob - float(expected[row, token.token])))
    return ties, worst


def references() -> Callable[[Any, list[int]], torch.Tensor]:
    """transformers' logits (tokens, vocabulary) for a sequence, with PEFT's adapter where there is one."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded: dict[Any, Any] = {}

    def logits(adapter: Any, tokens: list[int]) -> torch.Tensor:
        if adapter not in loaded:
            model = AutoModelForCausalLM.from_pretrained(folder(), dtype=torch.float32)
            if adapter is not None:
                from peft import PeftModel

                model = PeftModel.from_pretrained(model, adapter.folder)
            loaded[adapter] = model.eval()
        with torch.inference_mode():
            return loaded[adapter](torch.tensor([tokens])).logits[0]  # type: ignore[no-any-return]

    return logits
