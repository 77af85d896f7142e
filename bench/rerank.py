"""What reranking adds to a search, by the number of candidates, and what the first search pays for loading.

Candidates are some 150 tokens long, which is what chunks of documentation come to.
"""

from __future__ import annotations

from bench.corpus import pages
from bench.harness import Figure, Spread, seconds

WORDS = 50
QUERY = "What happens when an indexing run is killed?"


def run(quick: bool) -> list[Figure]:
    import torch

    from bench.__main__ import THREADS
    from framework.models.rerankers import load_reranker

    torch.set_num_threads(THREADS)
    words = [word for _, text in pages(200) for word in text.split()]
    texts = [" ".join(words[i * WORDS : (i + 1) * WORDS]) for i in range(50)]
    reranker = load_reranker()
    first = seconds(lambda: reranker.score(QUERY, texts[:1]))
    reranker.score(QUERY, texts)
    figures = [Figure("rerank, loading and one text, torch imported", Spread((first,)), "s")]
    for count in (10, 20, 30, 50):
        chosen = texts[:count]
        rounds = 5 if quick else 20
        times = Spread(
            tuple(1000 * seconds(lambda chosen=chosen: reranker.score(QUERY, chosen)) for _ in range(rounds))
        )
        figures.append(Figure(f"rerank, {count} candidates", times, "ms"))
    return figures
