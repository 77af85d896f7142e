"""The sentences of found passages, and what speaks for each as an answer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from agents.sentences import split_sentences
from framework.documents import Hit
from framework.models.base import Embedder, Vectors
from framework.retrieval.bm25 import Analyzer, inverse_document_frequency

FEATURES = ("cosine", "overlap", "overlap_nearby", "overlap_heading", "rank", "new_terms", "finished", "asks")
# Words of English questions that no answer has to repeat.
_ASKING = """what which who whom whose when where why how is are was were be been do does did done has have had can
could will would shall should may might must the a an of in on at by for from to with and or as it its this that there i
you we he she they my your our their many much about into than then if not name called kind type"""
CELL = " | "
_WORDS = re.compile(r"\w+")
_FINISHED = re.compile(r"[.!?。！？।॥؟۔:;][\"'”’»)\]」』）]*$")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sentence of a hit; the span is in the document. `before` and `after` are its neighbours in the chunk."""

    hit: Hit
    rank: int
    start: int
    end: int
    text: str
    before: str = ""
    after: str = ""

    @property
    def in_context(self) -> str:
        """As the embedder sees a chunk: under its title and headings."""
        return f"{self.hit.chunk.context}\n{self.text}" if self.hit.chunk.context else self.text


def candidates(hits: Sequence[Hit]) -> list[Candidate]:
    """Every sentence once, in the hits' order; headings and the heads of tables, which answer nothing, are left out."""
    found: dict[tuple[str, int, int], Candidate] = {}
    for rank, hit in enumerate(hits):
        for candidate in _of_hit(rank, hit):
            found.setdefault((hit.chunk.document_id, candidate.start, candidate.end), candidate)
    return list(found.values())


def repeats(question: str, sentence: str) -> bool:
    """Whether a sentence holds the whole question: an example of asking it, which answers nothing.

    A row of a table may hold the answer in its next cell, and a short question is a phrase like any other.
    """
    asked = " ".join(_WORDS.findall(question.casefold()))
    if asked.count(" ") < 2 or CELL in sentence:
        return False
    return f" {asked} " in f" {' '.join(_WORDS.findall(sentence.casefold()))} "


def _of_hit(rank: int, hit: Hit) -> Iterator[Candidate]:
    text, offset = hit.chunk.text, hit.chunk.start
    spans = [(s.start, s.end) for s in split_sentences(text)]
    headings = {hit.title, *hit.chunk.heading_path}
    padded = [(0, 0), *spans, (0, 0)]
    for (before, here), (_, after) in pairwise(pairwise(padded)):
        unit = text[slice(*here)]
        around = text[slice(*before)], text[slice(*after)]
        if unit not in headings and not _is_table_head(around[0], unit, around[1]):
            yield Candidate(hit, rank, offset + here[0], offset + here[1], unit, *around)


def _is_table_head(before: str, unit: str, after: str) -> bool:
    return CELL in unit and CELL in after and CELL not in before


def features(question: str, found: Sequence[Candidate], embedder: Embedder, analyzer: Analyzer) -> NDArray[np.float64]:
    """What speaks for each sentence: array of shape (len(found), len(FEATURES)), each column within 0 to 1 or nearly.

    - cosine: of question and sentence, the sentence under its title and headings as the embedder saw its chunk
    - overlap, overlap_nearby, overlap_heading: share of the question's IDF weight that the sentence holds; that it and
      its neighbours hold; that it and its headings hold
    - rank: 1 / rank of its passage
    - new_terms: terms that the question does not have, up to 20, as a share of 20
    - finished: ends like a sentence; asks: ends like a question
    """
    cosine = _embed(embedder, [c.in_context for c in found]) @ embedder.embed_query(question)

    def terms(*texts: str) -> set[int]:
        return set(analyzer.query(" ".join(texts)).indices)

    asked = terms(question) - terms(_ASKING)
    bags = [terms(c.text) for c in found]
    near = [terms(c.before, c.after) for c in found]
    above = [terms(c.hit.title, *c.hit.chunk.heading_path) for c in found]
    weights = _weights(asked, bags)
    rows = [
        (
            float(cosine[i]),
            _held(weights, bags[i]),
            _held(weights, bags[i] | near[i]),
            _held(weights, bags[i] | above[i]),
            1 / (1 + c.rank),
            min(len(bags[i] - asked), 20) / 20,
            float(_FINISHED.search(c.text) is not None),
            float(c.text.rstrip().endswith(("?", "？", "؟"))),
        )
        for i, c in enumerate(found)
    ]
    return np.array(rows, dtype=np.float64).reshape(len(found), len(FEATURES))


def _weights(asked: set[int], bags: Sequence[set[int]]) -> dict[int, float]:
    """IDF over the candidates, as shares of the question's whole weight."""
    holders = Counter(term for bag in bags for term in bag & asked)
    idf = {term: inverse_document_frequency(len(bags), holders[term]) for term in sorted(asked)}
    total = sum(idf.values()) or 1.0
    return {term: weight / total for term, weight in idf.items()}


def _held(weights: dict[int, float], bag: set[int]) -> float:
    return sum(weight for term, weight in weights.items() if term in bag)


def _embed(embedder: Embedder, texts: Sequence[str]) -> Vectors:
    """Each text's vector; what is longer than the embedder reads is judged by its beginning."""
    limit = embedder.info.max_tokens
    fitting = list(texts)
    for i, count in enumerate(embedder.count_tokens(texts)):
        if count > limit:
            spans = embedder.token_spans(texts[i])
            fitting[i] = texts[i][: spans[max(0, limit - 1 - (count - len(spans)))][0]]
    return embedder.embed_documents(fitting)
