"""B1: 32 greedy requests of mixed lengths at once, beside transformers one by one and its own continuous batching."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from bench.harness import Figure, Spread
from bench.models import Options, answers, engine, folder, prompts

TIE = 1e-4


def requests(count: int) -> tuple[list[list[int]], list[int]]:
    """Prompts of 20 to 300 tokens and how long each answer is, 16 to 96 tokens."""
    lengths = [20 + 41 * number % 281 for number in range(count)]
    return prompts(lengths), [16 + 29 * number % 81 for number in range(count)]


def run(quick: bool) -> list[Figure]:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    torch.set_num_threads(2)
    given, counts = requests(32)
    total = sum(counts)
    model = AutoModelForCausalLM.from_pretrained(folder(), dtype=torch.float32).eval()
    model.generation_config = GenerationConfig()
    exact, fast = engine(Options(dtype="float32", kv_dtype="float32")), engine(Options())

    def one_by_one() -> list[list[int]]:
        made = []
        for prompt, count in zip(given, counts, strict=True):
            ids = torch.tensor([prompt])
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count)
            made.append(out[0, len(prompt) :].tolist())
        return made

    def batched() -> list[list[int]]:
        config = GenerationConfig(max_new_tokens=max(counts), do_sample=False, eos_token_id=-1, pad_token_id=0)
        made: Any = model.generate_batch(given, generation_config=config)
        return [output.generated_tokens for output in made.values()]

    reference = one_by_one()  # warms it too
    ties = check(answers(exact, given, counts), reference, given, model)
    alone = [answers(fast, [prompt], [count])[0] for prompt, count in zip(given, counts, strict=True)]
    assert answers(fast, given, counts) == alone, "int8 batched differs from int8 alone"
    print(f"float32 equals transformers on {len(given)} requests ({ties} ties); int8 batched equals int8 alone")

    def rate(work: Callable[[], object], tokens: int) -> float:
        started = time.perf_counter()
        work()
        return tokens / (time.perf_counter() - started)

    names = {"int8": fast, "float32": exact}
    rates: dict[str, list[float]] = {name: [] for name in (*names, "one by one", "generate_batch")}
    for _ in range(1 if quick else 3):
        for name, made in names.items():
            rates[name].append(rate(lambda made=made: answers(made, given, counts), total))
        rates["one by one"].append(rate(one_by_one, total))
        rates["generate_batch"].append(rate(batched, max(counts) * len(given)))
    spreads = {name: Spread(tuple(values)) for name, values in rates.items()}
    return [
        Figure(
            f"B1 {len(given)} requests, {name}",
            spreads[name],
            "tokens/s",
            spreads[peer],
            peer,
            goal=goal if name == "int8" else None,
        )
        for name in names
        for peer, goal in (("one by one", 15.0), ("generate_batch", 10.0))
    ]


def check(found: list[list[int]], expected: list[list[int]], given: list[list[int]], model: Any) -> int:
    """Token equality; a first difference counts unless the reference's two best logits lie within 1e-4."""
    import torch

    ties = 0
    for ours, theirs, prompt in zip(found, expected, given, strict=True):
        if ours == theirs:
            continue
        place = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        with torch.inference_mode():
            best = model(torch.tensor([[*prompt, *theirs[:place]]])).logits[0, -1].topk(2).values
        assert best[0] - best[1] < TIE, f"token {place} differs: {ours[place]} instead of {theirs[place]}"
        ties += 1
    return ties
