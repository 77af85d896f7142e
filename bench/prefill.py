"""B3: a prompt of 512 tokens, beside llama.cpp and a transformers forward pass, and as a share of this CPU's peak."""

from __future__ import annotations

import time
from collections.abc import Callable

from bench.harness import Figure, Spread, alternate
from bench.models import LlamaCpp, Options, answers, engine, folder, prompts

LENGTH = 512


def run(quick: bool) -> list[Figure]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(2)
    prompt = prompts([LENGTH])[0]
    model = AutoModelForCausalLM.from_pretrained(folder(), dtype=torch.float32).eval()
    llama = LlamaCpp(1, LENGTH + 8)
    rounds, figures = 5 if quick else 15, []

    def transformers_rate() -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            model(torch.tensor([prompt]), logits_to_keep=1)
        return LENGTH / (time.perf_counter() - started)

    def llama_rate() -> float:
        llama.clear()
        started = time.perf_counter()
        llama.compute([(token, place, 0, place == LENGTH - 1) for place, token in enumerate(prompt)])
        return LENGTH / (time.perf_counter() - started)

    for dtype in ("int8", "float32"):
        ours = engine(Options(dtype=dtype, kv_dtype="auto" if dtype == "int8" else "float32"))

        def our_rate(ours: object = ours) -> float:
            started = time.perf_counter()
            answers(ours, [prompt], [1])  # type: ignore[arg-type]
            return LENGTH / (time.perf_counter() - started)

        our_rate(), llama_rate(), transformers_rate()
        mine, theirs = alternate(our_rate, llama_rate, rounds)
        mine2, others = alternate(our_rate, transformers_rate, rounds)
        goals = (6.0, 1.8) if dtype == "int8" else (None, None)
        figures.append(Figure(f"B3 prefill {LENGTH}, {dtype}", mine, "tokens/s", theirs, "llama.cpp", goals[0]))
        figures.append(Figure(f"B3 prefill {LENGTH}, {dtype}", mine2, "tokens/s", others, "transformers", goals[1]))
        share = Spread((products_per_second(mine2.median) / peak(dtype),))
        figures.append(Figure(f"B3 share of the {dtype} matrix product's peak", share, "of 1", goal=0.6))
    return figures


def products_per_second(tokens_per_second: float) -> float:
    """Multiplications of the linear layers (the head is computed for one token, attention not counted)."""
    from framework.engine.architectures import spec_of
    from framework.engine.loader import read_config

    spec = spec_of(read_config(folder()))
    assert spec is not None
    return tokens_per_second * spec.layers * sum(out * into for out, into in spec.linears.values())


def peak(dtype: str) -> float:
    """Multiplications a second of the fastest matrix product that torch or numpy has here, at a size that suits it."""
    import torch

    size, best = 2048, 0.0
    if dtype == "float32":
        x, weight = torch.randn(size, size), torch.randn(size, size)
        products: list[Callable[[], object]] = [lambda: x @ weight.T, lambda: x.numpy() @ weight.numpy().T]
    else:
        bytes_ = torch.randint(-100, 100, (size, size), dtype=torch.int8)
        products = [lambda: torch._int_mm(bytes_, bytes_)]
    for product in products * 8:
        started = time.perf_counter()
        product()
        best = max(best, size**3 / (time.perf_counter() - started))
    return best
