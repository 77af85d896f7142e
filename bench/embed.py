"""Embedding rate of our encoder beside sentence-transformers, on chunks of mixed length; vectors must agree first."""

from __future__ import annotations

import numpy as np

from bench.corpus import pages
from bench.harness import Figure, alternate, seconds

LENGTHS = (12, 30, 60, 110, 150)  # in words


def texts(count: int) -> list[str]:
    """Chunks cut from pages, of mixed length."""
    words = [word for _, text in pages(200) for word in text.split()]
    cut, start = [], 0
    for number in range(count):
        length = LENGTHS[number % len(LENGTHS)]
        cut.append(" ".join(words[start : start + length]))
        start = (start + length) % (len(words) - max(LENGTHS))
    return cut


def run(quick: bool) -> list[Figure]:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    from framework.models.catalog import Catalog
    from framework.models.embedders import load_embedder

    torch.set_num_threads(2)
    ours = load_embedder()
    body = Transformer(str(Catalog().resolve(ours.info.name).path), max_seq_length=ours.info.max_tokens)
    peer = SentenceTransformer(modules=[body, Pooling(ours.info.dimensions, "mean"), Normalize()], device="cpu")

    chunks = [t for t in texts(250 if quick else 2000) if ours.count_tokens([t])[0] <= ours.info.max_tokens]
    cosine = (ours.embed_documents(chunks[:100]) * peer.encode(chunks[:100])).sum(axis=1).min()
    print(f"{len(chunks)} chunks, lowest cosine to the peer {cosine:.6f}")
    assert cosine >= 0.999, "the vectors differ: nothing to compare"

    def rate(encode: object) -> float:
        assert callable(encode)
        return len(chunks) / seconds(lambda: np.asarray(encode(chunks)))

    rates = alternate(lambda: rate(ours.embed_documents), lambda: rate(peer.encode), 2 if quick else 3)
    return [Figure("embed", rates[0], "chunks/s", rates[1], "sentence-transformers", goal=1.0)]
