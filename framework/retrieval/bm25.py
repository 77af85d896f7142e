"""BM25 as sparse vectors: text to term ids and weights, the same in every store (Robertson and Zaragoza, 2009).

A document's weight holds the term frequency part with a fixed average length, so that it never changes when other
documents do; the query's weight is the term's count; the store multiplies by the IDF of its live points.
"""

from __future__ import annotations

import math
import re
import threading
import unicodedata
import zlib
from collections import Counter
from typing import Any

from framework.retrieval.store import SparseVector

# Raise it whenever the same text gives other terms or weights: older collections are then refused, not mixed.
VERSION = 1
K1 = 1.2
B = 0.75

# Vowel signs and diacritics belong to their word, though Python's \w leaves them out.
_MARKS = "\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u064b-\u065f\u0670\u06d6-\u06dc"
_MARKS += "\u0900-\u0903\u093a-\u094f\u0955-\u0957\u0981-\u0983\u09bc-\u09cd\u0a01-\u0a03\u0a3c-\u0a4d\u0a81-\u0a83"
_MARKS += "\u0abc-\u0acd\u0b01-\u0b03\u0b3c-\u0b4d\u0b82\u0bbe-\u0bcd\u0c00-\u0c04\u0c3c-\u0c4d\u0c81-\u0c83"
_MARKS += "\u0cbc-\u0ccd\u0d00-\u0d03\u0d3b-\u0d4d\u0dca-\u0ddf\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc"
_MARKS += "\u0ec8-\u0ecd\u102b-\u103e\u17b4-\u17d3"
_WORD = re.compile(f"(?:[^\\W_]|[{_MARKS}])+")
# Scripts written without spaces between words; a run of them becomes overlapping pairs of letters.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3"
_UNSPACED += "\U00020000-\U0003ffff"
_RUNS = re.compile(f"[{_UNSPACED}]+|[^{_UNSPACED}]+")
_HAS_UNSPACED = re.compile(f"[{_UNSPACED}]")


class Analyzer:
    """Text to BM25 terms in one language (ISO 639-1); a language without a Snowball stemmer keeps its words whole.

    Terms are NFKC-normalised lower-case words, stemmed; scripts without spaces give pairs of letters. Safe to call
    from several threads.
    """

    def __init__(self, language: str, average_length: float = 256.0, k1: float = K1, b: float = B) -> None:
        self.language = language
        self._slope = k1 * b / average_length
        self._base = k1 * (1 - b)
        self._scale = k1 + 1
        self._local = threading.local()

    def document(self, text: str) -> SparseVector:
        """Weights tf (k1 + 1) / (tf + k1 (1 - b + b length / average)) of each term."""
        terms = self.terms(text)
        norm = self._base + self._slope * len(terms)
        counts = Counter(map(term_id, terms))
        return _sparse({term: tf * self._scale / (tf + norm) for term, tf in counts.items()})

    def query(self, text: str) -> SparseVector:
        """Each term's count."""
        return _sparse(Counter(map(term_id, self.terms(text))))

    def terms(self, text: str) -> list[str]:
        words = _WORD.findall(unicodedata.normalize("NFKC", text).lower())
        if _HAS_UNSPACED.search(text):
            words = [part for word in words for part in _split(word)]
        stemmer = self._stemmer()
        return stemmer.stemWords(words) if stemmer else words

    def _stemmer(self) -> Any:
        """This thread's stemmer: Snowball's are not safe to share."""
        if not hasattr(self._local, "stemmer"):
            import Stemmer

            try:
                self._local.stemmer = Stemmer.Stemmer(self.language)
            except KeyError:
                self._local.stemmer = None
        return self._local.stemmer


def term_id(term: str) -> int:
    """A stable 32-bit id. Among 100,000 distinct terms, about one pair shares an id and is counted as one term."""
    return zlib.crc32(term.encode("utf-8", "surrogatepass"))


def inverse_document_frequency(points: int, holders: int) -> float:
    """ln(1 + (N - df + 1/2) / (df + 1/2)): Lucene's form of BM25's IDF, which is never negative."""
    return math.log(1 + (points - holders + 0.5) / (holders + 0.5))


def _split(word: str) -> list[str]:
    parts: list[str] = []
    for run in _RUNS.findall(word):
        if not _HAS_UNSPACED.match(run) or len(run) == 1:
            parts.append(run)
        else:
            parts += [run[i : i + 2] for i in range(len(run) - 1)]
    return parts


def _sparse(weights: dict[int, float] | Counter[int]) -> SparseVector:
    ids = sorted(weights)
    return SparseVector(tuple(ids), tuple(float(weights[id]) for id in ids))
