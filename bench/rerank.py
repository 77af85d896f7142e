"""What reranking adds to a search, by the number of candidates, and what the first search pays for loading.

Candidates are some 150 tokens long, which is what chunks of documentation come to.
"""

from __future__ import annotations

from bench.corpus import pages
from bench.harness import Figure, Spread, seconds

WORDS = 50
STRIDE = 7  # words between the beginnings of two candidates: each is new to the reranker
QUERY = "What happens when an indexing run is killed?"


def run(quick: bool) -> list[Figure]:
    import torch

    from bench.__main__ import THREADS
    from framework.models.rerankers import load_reranker

    torch.set_num_threads(THREADS)
    words = [word for _, text in pages(200) for word in text.split()]
    texts = [" ".join(words[i : i + WORDS]) for i in range(0, len(words) - WORDS, STRIDE)]
    reranker = load_reranker()
    first = seconds(lambda: reranker.score(QUERY, texts[:1]))
    figures = [Figure("rerank, loading and one text, torch imported", Spread((first,)), "s")]
    rounds, used = 3 if quick else 10, 1
    for count in (10, 20, 30, 50):
        new, known = [], []
        for _ in range(rounds):
            chosen = [texts[(used + i) % len(texts)] for i in range(count)]
            used += count
            new.append(1000 * seconds(lambda chosen=chosen: reranker.score(QUERY, chosen)))
            known.append(1000 * seconds(lambda chosen=chosen: reranker.score(QUERY, chosen)))
        figures.append(Figure(f"rerank, {count} candidates", Spread(tuple(new)), "ms"))
        figures.append(Figure(f"rerank, {count} candidates read before", Spread(tuple(known)), "ms"))
    return figures
