"""B5, B6: many LoRA adapters in one batch, beside PEFT and ourselves without; more adapters than there are slots."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.harness import Figure, Spread, alternate
from bench.models import Options, answers, engine, folder, prompts

if TYPE_CHECKING:
    from framework.engine.adapter import Adapter

RANK, ROWS, PROMPT = 8, 16, 32
USUAL = ("q_proj", "v_proj")  # what PEFT changes in a Llama unless told otherwise
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_adapter(to: Path, seed: int, targets: tuple[str, ...] = TARGETS) -> Adapter:
    """A LoRA adapter on these linear layers of each block with random weights, as PEFT writes it."""
    import torch
    from safetensors.torch import save_file

    from framework.engine.architectures import spec_of
    from framework.engine.loader import read_config
    from framework.engine.lora import identify

    spec = spec_of(read_config(folder()))
    assert spec is not None
    torch.manual_seed(seed)
    tensors = {}
    for layer in range(spec.layers):
        for name, (out, into) in spec.linears.items():
            if name.rpartition(".")[2] not in targets:
                continue
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(RANK, into) / into**0.5
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(out, RANK) * 0.02
    to.mkdir()
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK,
        "target_modules": list(targets), "lora_dropout": 0.0, "bias": "none", "base_model_name_or_path": str(folder()),
    }  # fmt: skip
    (to / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, to / "adapter_model.safetensors")
    return identify(to)


def run(quick: bool) -> list[Figure]:
    with tempfile.TemporaryDirectory() as name:
        adapters = [write_adapter(Path(name) / str(seed), seed) for seed in range(50 if quick else 200)]
        usual = [write_adapter(Path(name) / f"usual {seed}", seed, USUAL) for seed in range(ROWS)]
        return [
            *mixed(adapters[:ROWS], quick),
            *beside_none(usual, quick),
            fifty(adapters[:50]),
            *crowded(adapters, quick),
        ]


def mixed(adapters: Sequence[Adapter], quick: bool) -> list[Figure]:
    """B5: 16 requests over 1, 4 and 16 adapters."""
    given, steps = prompts([PROMPT] * ROWS), 24 if quick else 64
    exact = engine(Options(dtype="float32", kv_dtype="float32", adapter_slots=ROWS))
    fast = engine(Options(adapter_slots=ROWS))
    model = peft_model(adapters)
    figures = []
    for count in (1, 4, 16):
        users = [adapters[row % count] for row in range(ROWS)]
        names = [f"a{row % count}" for row in range(ROWS)]

        def theirs(tokens: int = steps, names: list[str] = names) -> list[list[int]]:
            return peft_answers(model, given, names, tokens)

        def ours(of: Any, users: list[Adapter] | None = users) -> float:
            started = time.perf_counter()
            answers(of, given, [steps] * ROWS, users or ())
            return steps * ROWS / (time.perf_counter() - started)

        check = 8
        found, expected = answers(exact, given, [check] * ROWS, users), theirs(check)
        same = sum(a == b for a, b in zip(found, expected, strict=True))
        assert same >= ROWS - 1, f"{ROWS - same} of {ROWS} answers differ from PEFT's"
        alone = [answers(fast, [p], [check], [u])[0] for p, u in zip(given, users, strict=True)]
        assert answers(fast, given, [check] * ROWS, users) == alone, "int8 batched differs from int8 alone"
        print(f"{count} adapters: float32 equals PEFT on {same} of {ROWS}, int8 batched equals alone")

        def peft_rate(theirs: Any = theirs) -> float:
            started = time.perf_counter()
            theirs()
            return steps * ROWS / (time.perf_counter() - started)

        rounds = 2 if quick else 4
        fast_rates, peft_rates = alternate(lambda ours=ours: ours(fast), peft_rate, rounds)
        with_rates, plain = alternate(lambda ours=ours: ours(fast), lambda ours=ours: ours(fast, None), 2 * rounds)
        exact_rates = Spread(tuple(ours(exact) for _ in range(rounds)))
        title = f"B5 {ROWS} requests over {count} adapters"
        figures.append(Figure(f"{title}, int8", fast_rates, "tokens/s", peft_rates, "PEFT", goal=6.0))
        figures.append(Figure(f"{title}, float32", exact_rates, "tokens/s", peft_rates, "PEFT"))
        figures.append(Figure(f"{title}, int8", with_rates, "tokens/s", plain, "no adapter", goal=0.85))
    return figures


def beside_none(adapters: Sequence[Adapter], quick: bool) -> list[Figure]:
    """B5 with adapters on queries and values only."""
    given, steps = prompts([PROMPT] * ROWS), 24 if quick else 64
    ours = engine(Options(adapter_slots=ROWS))

    def rate(users: Sequence[Adapter]) -> float:
        started = time.perf_counter()
        answers(ours, given, [steps] * ROWS, users)
        return steps * ROWS / (time.perf_counter() - started)

    figures = []
    for count in (1, 4, 16):
        users = [adapters[row % count] for row in range(ROWS)]
        rates = alternate(lambda users=users: rate(users), lambda: rate(()), 4 if quick else 8)
        title = f"B5 {ROWS} requests over {count} adapters on queries and values, int8"
        figures.append(Figure(title, rates[0], "tokens/s", rates[1], "no adapter", goal=0.85))
    return figures


def peft_model(adapters: Sequence[Adapter]) -> Any:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, GenerationConfig

    base = AutoModelForCausalLM.from_pretrained(folder(), dtype=torch.float32)
    base.generation_config = GenerationConfig(pad_token_id=0)
    model = PeftModel.from_pretrained(base, adapters[0].folder, adapter_name="a0")
    for number, adapter in enumerate(adapters[1:], start=1):
        model.load_adapter(adapter.folder, adapter_name=f"a{number}")
    return model.eval()


def peft_answers(model: Any, given: list[list[int]], names: list[str], tokens: int) -> list[list[int]]:
    import torch

    ids = torch.tensor(given)
    with torch.inference_mode():
        made = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), adapter_names=names, max_new_tokens=tokens,
            min_new_tokens=tokens, do_sample=False,
        )  # fmt: skip
    return made[:, ids.shape[1] :].tolist()


def fifty(adapters: Sequence[Adapter]) -> Figure:
    """50 adapters of every layer at once, each with the tokens that it gives alone."""
    given = prompts([PROMPT] * 50)
    ours = engine(Options(adapter_slots=50))
    alone = [answers(ours, [prompt], [12], [user])[0] for prompt, user in zip(given, adapters, strict=True)]
    started = time.perf_counter()
    assert answers(ours, given, [12] * 50, adapters) == alone, "50 adapters at once differ from each alone"
    return Figure("50 adapters at once, each as alone", Spread((600 / (time.perf_counter() - started),)), "tokens/s")


def crowded(adapters: Sequence[Adapter], quick: bool) -> list[Figure]:
    """B6: requests to many adapters, popular ones more often, with 16 slots and with one for each."""
    chance = np.random.default_rng(0)
    weights = 1 / np.arange(1, len(adapters) + 1)
    picks = chance.choice(len(adapters), 64 if quick else 256, p=weights / weights.sum())
    given = prompts([PROMPT] * len(picks))
    users, counts = [adapters[pick] for pick in picks], [16] * len(picks)
    few = engine(Options(adapter_slots=16, max_sequences=16))
    all_resident = engine(Options(adapter_slots=len(adapters), max_sequences=16))

    def rate(of: Any) -> float:
        started = time.perf_counter()
        answers(of, given, counts, users)
        return sum(counts) / (time.perf_counter() - started)

    assert answers(few, given, counts, users) == answers(all_resident, given, counts, users)
    rates = alternate(lambda: rate(few), lambda: rate(all_resident), 2 if quick else 4)
    title = f"B6 {len(adapters)} adapters, 16 resident, {len(picks)} requests"
    return [Figure(title, rates[0], "tokens/s", rates[1], "all resident", goal=0.5)]
