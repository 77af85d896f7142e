"""Adapters through the whole engine: many at once, each answering as it does alone and as a merged model would."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from framework.engine.adapter import Adapter
from framework.engine.decoders import load_decoder
from framework.engine.llm_engine import LLMEngine
from framework.engine.lora import AdapterCache, identify, read_adapter
from framework.engine.model_runner import ModelRunner
from framework.engine.sampler import Sampler
from framework.engine.scheduler import EngineLimits
from framework.engine.sequence import Request, SamplingParams
from framework.errors import CallerError
from framework.testing.adapters import write_ia3, write_lora

LENGTH = 6
MANY = 50


def engine(folder: Path, slots: int, cache_bytes: int = 2**30) -> LLMEngine:
    decoder = load_decoder(
        folder, "small", block_size=4, dtype="float32", kv_dtype="float32", device="cpu", adapter_slots=slots,
        kernels=False,
    )  # fmt: skip
    decoder.allocate(512)
    limits = EngineLimits(
        blocks=512, block_size=4, context_length=64, adapter_slots=slots, prefix_cache=decoder.shares_prefixes
    )
    return LLMEngine(ModelRunner(decoder, 4, AdapterCache(cache_bytes)), Sampler(), limits)


def prompt(number: int) -> tuple[int, ...]:
    return tuple((7 * number + place) % 200 + 1 for place in range(3 + number % 4))


def answers(engine: LLMEngine, asked: Iterable[tuple[tuple[int, ...], Adapter | None]]) -> list[Any]:
    """Tokens of each request, or the error that it ended with, when all are asked at once."""
    params = SamplingParams(max_tokens=LENGTH)
    sequences = [engine.add(Request(ids, params, adapter=adapter)) for ids, adapter in asked]
    errors: dict[int, Exception] = {}
    while engine.has_work:
        errors |= {event.sequence.number: event.error for event in engine.step() if event.error}
    return [errors.get(s.number) or tuple(s.tokens[len(s.request.prompt) :]) for s in sequences]


@pytest.fixture(scope="module")
def linears(model_folder: Callable[[str], Path]) -> dict[str, tuple[int, int]]:
    return dict(engine(model_folder("llama"), 1)._runner.decoder.linears)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def adapters(linears: dict[str, tuple[int, int]], tmp_path_factory: pytest.TempPathFactory) -> list[Adapter]:
    """LoRA of ranks 1 to 8 on all or some layers, and every tenth an (IA)³."""
    root = tmp_path_factory.mktemp("adapters")
    layers = {name: shape for name, shape in linears.items() if name != "lm_head"}
    some = {name: shape for name, shape in layers.items() if "q_proj" in name or "down_proj" in name}
    made = []
    for number in range(MANY):
        chosen, folder = (layers if number % 3 else some), root / str(number)
        if number % 10 == 9:
            made.append(identify(write_ia3(folder, some, seed=number)))
        else:
            made.append(identify(write_lora(folder, chosen, rank=1 + number % 8, size=0.2, seed=number)))
    return made


def merged_answer(
    folder: Path, adapter: Adapter | None, linears: dict[str, tuple[int, int]], ids: tuple[int, ...]
) -> Any:
    """Greedy tokens of transformers' model with the adapter folded into its weights."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    weights = read_adapter(adapter, linears) if adapter else None
    with torch.no_grad():
        for name, module in model.named_modules():
            name = name.removeprefix("model.")
            if weights and name in weights.lora:
                module.weight += weights.lora[name].b @ weights.lora[name].a
            if weights and name in weights.input_scale:
                module.weight *= weights.input_scale[name]
            if weights and name in weights.output_scale:
                module.weight *= weights.output_scale[name][:, None]
        tokens = list(ids)
        for _ in range(LENGTH):
            best = model(torch.tensor([tokens])).logits[0, -1].topk(2)
            assert best.values[0] - best.values[1] > 1e-4, "a tie would prove nothing"
            tokens.append(int(best.indices[0]))
    return tuple(tokens[len(ids) :])


def test_fifty_resident_adapters_answer_at_once_as_each_does_alone(
    model_folder: Callable[[str], Path], adapters: list[Adapter]
) -> None:
    asked = [(prompt(number), adapter) for number, adapter in enumerate(adapters)]
    together = answers(engine(model_folder("llama"), MANY), [*asked, (prompt(0), None)])
    one = engine(model_folder("llama"), 2)
    alone = [answers(one, [request])[0] for request in [*asked, (prompt(0), None)]]
    assert together == alone
    assert len(set(together)) > MANY // 2, "the adapters differ"


def test_answers_are_those_of_a_merged_model(
    model_folder: Callable[[str], Path], adapters: list[Adapter], linears: dict[str, tuple[int, int]]
) -> None:
    folder, chosen = model_folder("llama"), [None, *adapters[6:11]]
    asked = [(prompt(number), adapter) for number, adapter in enumerate(chosen)]
    expected = [merged_answer(folder, adapter, linears, ids) for ids, adapter in asked]
    assert answers(engine(folder, 8), asked) == expected


def test_more_adapters_than_slots_and_memory_take_turns(
    model_folder: Callable[[str], Path], adapters: list[Adapter]
) -> None:
    asked = [(prompt(number), adapters[number % 12]) for number in range(24)]
    plenty = answers(engine(model_folder("llama"), MANY), asked)
    assert answers(engine(model_folder("llama"), 2, cache_bytes=40_000), asked) == plenty


def test_the_same_prompt_under_two_adapters_shares_no_cached_block(
    model_folder: Callable[[str], Path], adapters: list[Adapter]
) -> None:
    ids = tuple(range(1, 18))
    fresh = [answers(engine(model_folder("llama"), 4), [(ids, adapter)])[0] for adapter in (*adapters[:3], None)]
    used = engine(model_folder("llama"), 4)
    for _ in range(2):
        assert [answers(used, [(ids, adapter)])[0] for adapter in (*adapters[:3], None)] == fresh


def test_a_damaged_adapter_ends_its_own_requests_only(
    model_folder: Callable[[str], Path], adapters: list[Adapter], linears: dict[str, tuple[int, int]], tmp_path: Path
) -> None:
    folder = write_lora(tmp_path, {name: shape for name, shape in linears.items() if "q_proj" in name})
    broken = identify(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"junk")
    asked = [(prompt(0), adapters[0]), (prompt(1), broken), (prompt(2), adapters[2]), (prompt(3), broken)]
    whole = [(prompt(0), adapters[0]), (prompt(2), adapters[2])]
    running = engine(model_folder("llama"), 4)
    first, refused, second, again = answers(running, asked)
    assert isinstance(refused, CallerError)
    assert "changed since" in str(refused)
    assert isinstance(again, CallerError)
    assert [first, second] == answers(engine(model_folder("llama"), 4), whole)
    assert not running.has_work


@pytest.mark.parametrize("kind", ["qwen3", "gpt-neox"])
def test_other_architectures_take_adapters_too(model_folder: Callable[[str], Path], kind: str, tmp_path: Path) -> None:
    running = engine(model_folder(kind), 4)
    layers = {
        name: shape
        for name, shape in running._runner.decoder.linears.items()
        if "." in name  # type: ignore[attr-defined]
    }
    made = [identify(write_lora(tmp_path / str(rank), layers, rank=rank, size=0.2, seed=rank)) for rank in (2, 3)]
    asked = [(prompt(1), made[0]), (prompt(1), None), (prompt(1), made[1])]
    together = answers(running, asked)
    assert together == [answers(engine(model_folder(kind), 4), [request])[0] for request in asked]
    assert len(set(together)) == 3
