"""What eight bits cost: loss and perplexity on prose in float32, with int8 weights, with an int8 cache, with both."""

from __future__ import annotations

import math

from bench.corpus import pages
from bench.harness import Figure, Spread
from bench.models import NAME, folder

WINDOW = 512


def run(quick: bool) -> list[Figure]:
    from tokenizers import Tokenizer

    from framework.engine.decoders import load_decoder
    from framework.engine.quantize import mean_loss

    tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    ids = tokenizer.encode(text()).ids[: WINDOW * (8 if quick else 64)]
    figures, exact = [], 0.0
    for dtype, kv_dtype in (
        ("float32", "float32"),
        ("int8", "float32"),
        ("float32", "int8"),
        ("int8", "bfloat16"),
        ("int8", "int8"),
    ):
        decoder = load_decoder(folder(), NAME, block_size=16, dtype=dtype, kv_dtype=kv_dtype, device="cpu")
        loss = mean_loss(decoder, ids, block_size=16, window=WINDOW)
        exact = exact or loss
        print(f"{dtype} weights, {kv_dtype} cache: loss {loss:.4f} nats a token, perplexity {math.exp(loss):.3f}")
        figures.append(
            Figure(
                f"perplexity, {dtype} weights, {kv_dtype} cache",
                Spread((math.exp(loss - exact),)),
                "times float32's",
                goal=1.01,
                below=True,
            )
        )
    return figures


def text() -> str:
    """Questions' passages of ClapNQ where LECTERN_DATA has them; otherwise generated pages, whose loss says less."""
    import gzip
    import json
    import os
    from pathlib import Path

    data = os.environ.get("LECTERN_DATA")
    if not data:
        return "\n\n".join(page for _, page in pages(200))
    with gzip.open(Path(data) / "clapnq" / "passages.jsonl.gz", "rt", encoding="utf-8") as lines:
        return "\n\n".join(json.loads(line)["text"] for _, line in zip(range(600), lines, strict=False))
