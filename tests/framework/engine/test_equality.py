"""Greedy answers of the whole engine are the reference's, token by token, whatever happens around them.

The reference is transformers: after each prompt and the tokens so far, its most probable token must be the one that the
engine gave. Where it is not, its two best logits must lie within 1e-4 (a tie, which is counted).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from framework.engine.adapter import Adapter
from framework.engine.decoders import load_decoder
from framework.engine.limits import EngineLimits
from framework.engine.llm_engine import LLMEngine
from framework.engine.lora import AdapterCache, identify
from framework.engine.model_runner import ModelRunner
from framework.engine.sampler import Sampler
from framework.engine.sequence import Request, SampledToken, SamplingParams, Sequence
from framework.testing.adapters import write_ia3, write_lora

BLOCK, CONTEXT = 16, 200
TIE = 1e-4
MODELS = [("llama", True), ("qwen3", True), ("mistral", True), ("llama", False), ("qwen3", False), ("gpt-neox", False)]


@dataclass
class Served:
    """An engine, and all that came out of it."""

    engine: LLMEngine
    answers: dict[Sequence, list[SampledToken]] = field(default_factory=dict)

    def add(self, prompt: list[int], tokens: int, **options: Any) -> Sequence:
        params = SamplingParams(max_tokens=tokens, logprobs=3)
        sequence = self.engine.add(Request(tuple(prompt), params, **options))
        self.answers[sequence] = []
        return sequence

    def step(self) -> None:
        for event in self.engine.step():
            assert event.error is None, event.error
            self.answers[event.sequence] += event.tokens

    def finish(self) -> None:
        while self.engine.has_work:
            self.step()
        self.engine.idle()
        assert self.engine.blocks_used == 0


@pytest.fixture
def serve(model_folder: Any) -> Any:
    """Gives an engine on a kind of model, with or without the C++ kernels."""
    opened = []

    def made(kind: str, kernels: bool, **limits: Any) -> Served:
        options = {"blocks": 200, "max_sequences": 32, "max_tokens_per_step": 64, **limits}
        decoder = load_decoder(
            model_folder(kind), kind, block_size=BLOCK, dtype="float32", kv_dtype="float32", device="cpu",
            adapter_slots=4, kernels=kernels,
        )  # fmt: skip
        decoder.allocate(options["blocks"])
        bounds = EngineLimits(block_size=BLOCK, context_length=CONTEXT, adapter_slots=4, **options)
        opened.append(LLMEngine(ModelRunner(decoder, BLOCK, AdapterCache(2**28)), Sampler(), bounds))
        return Served(opened[-1])

    yield made
    for engine in opened:
        engine.close()


def check(served: Served, logits: Callable[[list[int]], torch.Tensor], most_ties: int = 2) -> None:
    """Every answer so far is the reference's."""
    ties = 0
    for sequence, tokens in served.answers.items():
        prompt = list(sequence.request.prompt)
        if not tokens:
            continue
        given = [token.token for token in tokens]
        rows = logits(prompt + given[:-1])[len(prompt) - 1 :]
        best = rows.topk(2, dim=-1)
        expected = torch.log_softmax(rows.double(), dim=-1)
        for row, token in enumerate(tokens):
            if best.indices[row, 0] != token.token:
                assert best.values[row, 0] - rows[row, token.token] < TIE
                ties += 1
            assert token.logprob == pytest.approx(expected[row, token.token].item(), abs=1e-3)
            assert [value for _, value in token.top] == pytest.approx(expected[row].topk(3).values.tolist(), abs=1e-3)
    assert ties <= most_ties


def ids(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(1, 256, count).tolist()


@pytest.mark.parametrize(("kind", "kernels"), MODELS)
def test_mixed_requests_that_arrive_at_any_time(kind: str, kernels: bool, serve: Any, reference: Any) -> None:
    """Alone, batched, cut into chunks, with shared beginnings, beside requests that are cancelled."""
    served, chance = serve(kind, kernels), np.random.default_rng(1)
    beginnings = [ids(length, seed) for seed, length in enumerate((0, 15, 16, 17, 32, 70))]
    for number in range(60):
        begun = beginnings[int(chance.integers(len(beginnings)))]
        sequence = served.add(begun + ids(int(chance.integers(1, 90)), 100 + number), int(chance.integers(1, 14)))
        for _ in range(int(chance.integers(0, 4))):
            served.step()
        if number % 7 == 3:
            served.engine.cancel(sequence)
    served.finish()
    check(served, lambda tokens: reference(kind, tokens))


@pytest.mark.parametrize(("kind", "kernels"), MODELS)
@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 33, 63, 64, 65])
def test_a_prefix_of_any_length_is_found_and_changes_nothing(
    kind: str, kernels: bool, length: int, serve: Any, reference: Any
) -> None:
    served, prompt = serve(kind, kernels), ids(100, seed=5)
    first = served.add(prompt[:length], 3)
    served.finish()
    again = served.add(prompt[:length], 6)
    longer = served.add(prompt[: length + 20], 6)
    served.finish()
    if served.engine.limits.prefix_cache and kind != "gpt-neox":
        assert again.cached == length - 1
        assert longer.cached >= length  # more where the answer to the first went on as the prompt does
    assert first.cached == 0
    check(served, lambda tokens: reference(kind, tokens))


@pytest.mark.parametrize(("kind", "kernels"), MODELS)
def test_requests_that_lose_their_blocks_go_on_as_if_nothing_had_happened(
    kind: str, kernels: bool, serve: Any, reference: Any
) -> None:
    served = serve(kind, kernels, blocks=14)
    sequences = [served.add(ids(20 + number, seed=number), 40) for number in range(12)]
    served.finish()
    assert sum(sequence.preemptions for sequence in sequences) > 3
    check(served, lambda tokens: reference(kind, tokens))


@pytest.mark.parametrize("kernels", [True, False])
def test_adapters_beside_each_other_and_the_base(
    kernels: bool, serve: Any, model_folder: Any, reference: Any, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    served = serve("llama", kernels, prefix_cache=True)
    linears = served.engine._runner.decoder.linears
    of_layers = {name: shape for name, shape in linears.items() if name != "lm_head"}
    adapters: list[Adapter | None] = [None]
    for number in range(6):  # more than there are slots
        make = write_ia3 if number == 4 else write_lora
        make(tmp_path / str(number), of_layers, seed=number, **({} if number == 4 else {"rank": 2 + 3 * number}))
        adapters.append(identify(tmp_path / str(number)))
    users = {}
    for number in range(70):
        adapter = adapters[number % len(adapters)]
        users[served.add(ids(5 + number % 40, seed=number % 9), 8, adapter=adapter)] = number % len(adapters)
        if number % 3 == 0:
            served.step()
    served.finish()
    for number, adapter in enumerate(adapters):
        model: Any = None
        if adapter is not None:
            base = AutoModelForCausalLM.from_pretrained(model_folder("llama"), dtype=torch.float32)
            model = PeftModel.from_pretrained(base, adapter.folder).eval()

        def logits(tokens: list[int], model: Any = model) -> torch.Tensor:
            if model is None:
                return reference("llama", tokens)  # type: ignore[no-any-return]
            with torch.inference_mode():
                return model(torch.tensor([tokens])).logits[0]  # type: ignore[no-any-return]

        mine = {s: tokens for s, tokens in served.answers.items() if users[s] == number}
        check(Served(served.engine, mine), logits)


def test_eight_bits_batched_equal_eight_bits_alone(model_folder: Any) -> None:
    """Rounded activations have scales of their own row, so company changes nothing."""
    answers = []
    for size in (1, 24):
        decoder = load_decoder(
            model_folder("qwen3"), "m", block_size=BLOCK, dtype="int8", kv_dtype="int8", device="cpu"
        )
        decoder.allocate(300)
        bounds = EngineLimits(blocks=300, context_length=CONTEXT, max_sequences=size, adapter_slots=0)
        served = Served(LLMEngine(ModelRunner(decoder, BLOCK), Sampler(), bounds))
        sequences = [served.add(ids(3 + 5 * number, seed=number), 12) for number in range(30)]
        served.finish()
        served.engine.close()
        answers.append([served.answers[sequence] for sequence in sequences])
    assert answers[0] == answers[1]
