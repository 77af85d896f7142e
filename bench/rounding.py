"""What eight bits cost on prose: perplexity, and how often the next word is the most probable one, beside float32."""

from __future__ import annotations

import gzip
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.corpus import pages
from bench.harness import Figure, Spread
from bench.models import NAME, folder

if TYPE_CHECKING:
    from framework.engine.forward import Decoder

WINDOW = 512
FORMATS = (("float32", "int8"), ("int8", "float32"), ("int8", "bfloat16"), ("int8", "int8"))


def run(quick: bool) -> list[Figure]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    ids = tokenizer.encode(text()).ids[: WINDOW * (8 if quick else 64)]
    exact, right = measure(ids, "float32", "float32")
    print(f"{len(ids)} tokens, float32: perplexity {math.exp(exact.mean()):.3f}, next token right {right.mean():.4f}")
    figures = []
    for dtype, kv_dtype in FORMATS:
        losses, hits = measure(ids, dtype, kv_dtype)
        points = 100 * (hits.mean() - right.mean())
        error = 196 * (hits - right).std() / math.sqrt(len(hits))
        print(f"{dtype} weights, {kv_dtype} cache: next token right {points:+.2f} points (+-{error:.2f}, paired)")
        title = f"{dtype} weights, {kv_dtype} cache"
        more = Spread((math.exp(losses.mean() - exact.mean()),))
        figures.append(Figure(f"perplexity, {title}", more, "times float32's", goal=1.01, below=True))
        figures.append(Figure(f"next token right, {title}", Spread((points,)), "points", goal=-1.0))
    return figures


def measure(ids: list[int], dtype: str, kv_dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Of each token but a window's first: its loss in nats, and whether it was the most probable one."""
    from framework.engine.decoders import load_decoder

    decoder = load_decoder(folder(), NAME, block_size=16, dtype=dtype, kv_dtype=kv_dtype, device="cpu")  # type: ignore[arg-type]
    decoder.allocate(WINDOW // 16)
    pairs = [one_window(decoder, ids[start : start + WINDOW]) for start in range(0, len(ids) - WINDOW + 1, WINDOW)]
    return np.concatenate([losses for losses, _ in pairs]), np.concatenate([hits for _, hits in pairs])


def one_window(decoder: Decoder, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    import torch

    from framework.engine.forward import ForwardInputs

    count = len(ids)
    inputs = ForwardInputs(
        tokens=np.array(ids, dtype=np.int32),
        positions=np.arange(count, dtype=np.int32),
        starts=np.array([0, count], dtype=np.int32),
        blocks=np.arange(count // 16, dtype=np.int32)[None],
        slots=np.array([-1], dtype=np.int32),
        sampled=np.arange(count - 1, dtype=np.int32),
    )
    logits, wanted = decoder.forward(inputs), torch.tensor(ids[1:])
    losses = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
    return losses.double().numpy(), (logits.argmax(1) == wanted).double().numpy()


def text() -> str:
    """Passages of ClapNQ where LECTERN_DATA has them; otherwise generated pages, whose loss says less."""
    data = os.environ.get("LECTERN_DATA")
    if not data:
        return "\n\n".join(page for _, page in pages(200))
    with gzip.open(Path(data) / "clapnq" / "passages.jsonl.gz", "rt", encoding="utf-8") as lines:
        return "\n\n".join(json.loads(line)["text"] for _, line in zip(range(600), lines, strict=False))
