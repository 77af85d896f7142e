"""Hard negatives: passages that a search takes for an answer and that are none.

What searches is handed in, so that the same code mines from a hybrid search, an embedder or a list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from framework.models.base import Embedder
from framework.training.rows import PairRow


@dataclass(frozen=True, slots=True)
class Passage:
    """A text that may be a negative. Passages of the row's own document never are."""

    text: str
    document: str


# The best passages for a query, best first, at most so many.
Search: TypeAlias = Callable[[str, int], Sequence[Passage]]


def mine(rows: Sequence[PairRow], search: Search, count: int, depth: int = 30, skip: int = 0) -> list[PairRow]:
    """The rows with negatives added to those that they have, until each has `count`, or no more are found.

    Args:
        rows: queries with their passages.
        search: what finds candidates.
        count: negatives that each row should have.
        depth: how far down a ranking to look at first; further where a row's own document fills the top.
        skip: best passages of other documents to leave out: the best may answer too, though nobody said so.
    """
    assert 0 <= skip < depth, (skip, depth)
    return [_mined(row, search, count, depth, skip) for row in rows]


def _mined(row: PairRow, search: Search, count: int, depth: int, skip: int) -> PairRow:
    mined = row
    while len(mined.negatives) < count:
        found = search(row.query, depth)
        mined = _with(row, found, count, skip)
        if len(found) < depth:
            break
        depth *= 2
    return mined


def _with(row: PairRow, found: Sequence[Passage], count: int, skip: int) -> PairRow:
    foreign = [passage.text for passage in found if passage.document != row.document]
    own = {row.positive, *row.negatives}
    fresh = [text for text in dict.fromkeys(foreign[skip:]) if text not in own]
    return replace(row, negatives=(*row.negatives, *fresh[: count - len(row.negatives)]))


def embedder_search(embedder: Embedder, passages: Sequence[Passage]) -> Search:
    """Searches passages by the cosine of their vectors; equal ones go by their place."""
    unique = list(dict.fromkeys(passages))
    vectors = embedder.embed_documents([passage.text for passage in unique])

    def search(query: str, depth: int) -> list[Passage]:
        cosines = vectors @ embedder.embed_query(query)
        return [unique[i] for i in np.argsort(-cosines, kind="stable")[:depth]]

    return search


def positives(rows: Sequence[PairRow]) -> list[Passage]:
    """The rows' own passages: what to search where there is nothing else."""
    return list(dict.fromkeys(Passage(row.positive, row.document) for row in rows))
