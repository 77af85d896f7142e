"""What reranking does to the questions that `bench.reranker_data` keeps from training, by candidates and by blending.

    LECTERN_DATA=../shared/data python -m bench.reranker_tune [--reranker FOLDER] [--limit 100]
    python -m bench.reranker_tune --unseen recipes/reranker.documents.txt

With `--unseen`, what it does to 400 questions about those of our own documents that the file does not name: none of
them was there when the adapter that ships was made. nDCG@10 over documents, by their best chunk. Each question is
searched once; the blends are computed from the scores.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bench.reranker_data import Collection, Question, named, open_home, own, scifact
from framework.bridge import run_sync
from framework.documents import Hit
from framework.models.rerankers import load_reranker
from framework.retrieval.config import SearchConfig
from framework.retrieval.rerank import rerank
from framework.retrieval.retriever import Retriever

CANDIDATES = (10, 20, 30)
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
FUSED = "dbsf"


def ndcg(ranking: Sequence[str], gold: frozenset[str], k: int = 10) -> float:
    """With binary gains, over the first k different documents."""
    found = list(dict.fromkeys(ranking))[:k]
    gains = sum(1 / np.log2(place + 2) for place, document in enumerate(found) if document in gold)
    ideal = sum(1 / np.log2(place + 2) for place in range(min(k, len(gold))))
    return float(gains / ideal)


def blended(hits: Sequence[Hit], candidates: int, share: float) -> list[str]:
    """The documents as they rank with this share of the first stage."""
    order = sorted(((hit.id, hit.scores[FUSED]) for hit in hits), key=lambda item: (-item[1], item[0]))
    by_id: Mapping[str, Hit] = {hit.id: hit for hit in hits}
    scores = {id: by_id[id].scores["rerank"] for id, _ in order[:candidates]}
    return [by_id[id].chunk.document_id for id, _ in rerank(order, scores, share)]


def table(retriever: Retriever, questions: Sequence[Question]) -> None:
    found = [(question.gold, run_sync(retriever.search(question.text, rerank=True)).hits) for question in questions]
    print("| candidates | " + " | ".join(f"first stage {share:g}" for share in SHARES) + " |")
    print("|---|" + "---|" * len(SHARES))
    for candidates in CANDIDATES:
        means = [np.mean([ndcg(blended(hits, candidates, share), gold) for gold, hits in found]) for share in SHARES]
        print(f"| {candidates} | " + " | ".join(f"{mean:.4f}" for mean in means) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.reranker_tune", description=__doc__)
    parser.add_argument("--home", type=Path, default=Path("runs/reranker/home"))
    parser.add_argument("--reranker", help="a folder; without one, the configured model")
    parser.add_argument("--limit", type=int, default=100_000, help="questions of each set")
    parser.add_argument("--unseen", type=Path, help="a file of ids of our own documents: report on the others")
    arguments = parser.parse_args()
    model = load_reranker(arguments.reranker)
    config = SearchConfig(k=50, pool=200, rerank_candidates=max(CANDIDATES))
    with open_home(arguments.home) as library:
        for collection, questions in _asked(arguments.unseen):
            library.index_documents(collection.documents, collection.name)
            print(f"{collection.name}: {len(questions)} questions")
            made = library.retriever(collection.name, config)
            parts = (made.store, made.corpus, made.embedder, made.tenant, made.collection, config)
            table(Retriever(*parts, reranker=lambda: model), questions[: arguments.limit])


def _asked(unseen: Path | None) -> list[tuple[Collection, list[Question]]]:
    """Collections with what is asked of them."""
    everything = own()
    if unseen is None:
        claims = scifact(Path(os.environ["LECTERN_DATA"]))
        return [(everything, everything.choosing), (claims, claims.choosing)]
    seen = named(unseen)
    fresh = sorted((q for q in everything.questions if not q.gold & seen), key=lambda question: question.id)
    random.Random(5).shuffle(fresh)
    return [(everything, fresh[:400])]


if __name__ == "__main__":
    main()
