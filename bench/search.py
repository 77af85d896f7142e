"""What a hybrid search adds to the store's own two queries, ids and scores read: fusion, the check against the
manifest, a thread's hop.

The vectors are random and cost nothing to make, so that the time of an embedding does not hide what is measured.
"""

from __future__ import annotations

import asyncio
import random
import re
import tempfile
import time
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.corpus import generated
from bench.harness import Figure, Spread
from framework.models.base import EmbedderInfo, Vectors

DIMENSIONS = 384
TENANT, COLLECTION = "default", "sentences"


def vector(text: str) -> Vectors:
    drawn = np.random.default_rng(zlib.crc32(text.encode())).standard_normal(DIMENSIONS, dtype=np.float32)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)


class RandomEmbedder:
    """Unit vectors drawn by the text's own checksum, a query's only once; a token is a word."""

    info = EmbedderInfo("random", "random", DIMENSIONS, 512)

    def __init__(self) -> None:
        self.embed_query = cache(vector)

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        return np.stack([vector(text) for text in texts])

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) + 2 for text in texts]

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        return [match.span() for match in re.finditer(r"\S+", text)]


def sentences(count: int) -> list[str]:
    """Generated sentences, each some 40 words long."""
    found: list[str] = []
    pages = 200
    while len(found) < count:
        text = " ".join(text for _, text in generated(pages, seed=len(found)))
        words = text.split()
        found += [" ".join(words[i : i + 40]) for i in range(0, len(words), 40)]
    return found[:count]


def run(quick: bool) -> list[Figure]:
    from framework.documents import Document
    from framework.retrieval.qdrant import EdgeStore
    from indexers.library import Library

    count, rounds = (4000, 100) if quick else (20_000, 400)
    texts = sentences(count)
    embedder = RandomEmbedder()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        with Library(home, EdgeStore(home / "store"), embedder) as library:
            library.index_documents([Document(f"d{i}", text) for i, text in enumerate(texts)], COLLECTION)
            chunks = library.store.count(TENANT, COLLECTION)
            print(f"{chunks} chunks, {rounds} queries")
            queries = [" ".join(random.Random(i).sample(texts[i].split(), 6)) for i in range(rounds)]
            ours, raw = asyncio.run(_turns(library, queries))
    added = Spread(tuple(a - b for a, b in zip(ours.values, raw.values, strict=True)))
    return [
        Figure(f"search, {chunks} chunks", ours, "ms", raw, "the store's two queries"),
        Figure("search, added over the store", added, "ms", goal=1.0, below=True),
    ]


async def _turns(library: Any, queries: Sequence[str]) -> tuple[Spread, Spread]:
    """Each query by ours and by the bare engine, in turn; milliseconds. The first ten warm both."""
    from framework.retrieval.bm25 import Analyzer

    retriever = library.retriever(COLLECTION)
    space = library.store.space(TENANT, COLLECTION)
    analyzer = Analyzer(space.language, space.average_length)
    ours, raw = [], []
    for query in queries:
        drawn, terms = retriever.embedder.embed_query(query), analyzer.query(query)
        started = time.perf_counter()
        found = await retriever.search(query)
        ours.append((time.perf_counter() - started) * 1000)
        assert len(found.hits) == retriever.config.k
        with library.store._use(TENANT, COLLECTION) as shard:  # the engine itself, below our own code
            requests = _requests(drawn, terms, retriever.config.pool)
            started = time.perf_counter()
            for request in requests:
                _ = [(point.id, point.score) for point in shard.edge.query(request)]
            raw.append((time.perf_counter() - started) * 1000)
    return Spread(tuple(ours[10:])), Spread(tuple(raw[10:]))


def _requests(vector: Vectors, terms: Any, n: int) -> list[Any]:
    from qdrant_edge import Filter, IdfParams, Query, QueryRequest, SearchParams, SparseVector

    sparse = SparseVector(list(terms.indices), list(terms.values))
    dense = Query.Nearest(vector.tolist(), using="dense")
    lexical = Query.Nearest(sparse, using="sparse")
    return [
        QueryRequest(limit=n, query=dense, params=SearchParams(exact=True), with_vector=False),
        QueryRequest(limit=n, query=lexical, params=SearchParams(idf=IdfParams(corpus=Filter())), with_vector=False),
    ]
