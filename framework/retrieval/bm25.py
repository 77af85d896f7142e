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
from collections.abc import Mapping
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
# Scripts written without spaces between words. A run of them becomes overlapping pairs or triples of letters, whichever
# finds more: measured on Chinese and Thai questions.
_PAIRED = "\u3005\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\U00020000-\U0003ffff"
_TRIPLED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_RUN = re.compile(f"([{_PAIRED}]+)|([{_TRIPLED}]+)|[^{_PAIRED}{_TRIPLED}]+")
_PAIRS = re.compile(f"[{_PAIRED}]{{2,}}")
_UNSPACED = re.compile(f"[{_PAIRED}{_TRIPLED}]")
# Words whose term ids an analyzer remembers; stemming is the slow part.
REMEMBERED = 200_000


class Analyzer:
    """Text to BM25 terms in one language (ISO 639-1); a language without a Snowball stemmer keeps its words whole.

    Terms are NFKC-normalised lower-case words, stemmed; scripts without spaces give groups of letters. Safe to call
    from several threads.
    """

    def __init__(self, language: str, average_length: float = 150.0, k1: float = K1, b: float = B) -> None:
        self.language = language
        self._slope = k1 * b / average_length
        self._base = k1 * (1 - b)
        self._scale = k1 + 1
        self._ids: dict[str, int] = {}
        self._local = threading.local()

    def document(self, text: str) -> SparseVector:
        """Weights tf (k1 + 1) / (tf + k1 (1 - b + b length / average)) of each term.

        Single letters of a paired script are terms too, so that a query of one finds them; they add no length.
        """
        plain = _plain(text)
        words = _words(plain)
        norm = self._base + self._slope * len(words)
        counts = self._counts([*words, *"".join(_PAIRS.findall(plain))])
        return _sparse({term: tf * self._scale / (tf + norm) for term, tf in counts.items()})

    def query(self, text: str) -> SparseVector:
        """Each term's count."""
        return _sparse(self._counts(_words(_plain(text))))

    def _counts(self, words: list[str]) -> dict[int, int]:
        counts: dict[int, int] = {}
        for word, count in Counter(words).items():
            id = self._ids.get(word)
            if id is None:
                id = self._remember(word)
            counts[id] = counts.get(id, 0) + count
        return counts

    def _remember(self, word: str) -> int:
        stemmer = self._stemmer()
        id = term_id(stemmer.stemWord(word) if stemmer else word)
        if len(self._ids) >= REMEMBERED:
            self._ids.clear()
        self._ids[word] = id
        return id

    def _stemmer(self) -> Any:
        """This thread's stemmer: Snowball's are not safe to share."""
        if not hasattr(self._local, "stemmer"):
            import Stemmer

            try:
                self._local.stemmer = Stemmer.Stemmer(self.language, 0)
            except KeyError:
                self._local.stemmer = None
        return self._local.stemmer


def term_id(term: str) -> int:
    """A stable 32-bit id. Among 100,000 distinct terms, about one pair shares an id and is counted as one term."""
    return zlib.crc32(term.encode("utf-8", "surrogatepass"))


def inverse_document_frequency(points: int, holders: int) -> float:
    """ln(1 + (N - df + 1/2) / (df + 1/2)): Lucene's form of BM25's IDF, which is never negative."""
    return math.log(1 + (points - holders + 0.5) / (holders + 0.5))


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


def _words(plain: str) -> list[str]:
    words = _WORD.findall(plain)
    return [part for word in words for part in _parts(word)] if _UNSPACED.search(plain) else words


def _parts(word: str) -> list[str]:
    parts: list[str] = []
    for run in _RUN.finditer(word):
        text, size = run.group(), 2 if run.group(1) else 3 if run.group(2) else 0
        parts += [text[i : i + size] for i in range(len(text) - size + 1)] if 0 < size < len(text) else [text]
    return parts


def _sparse(weights: Mapping[int, float]) -> SparseVector:
    ids = sorted(weights)
    return SparseVector(tuple(ids), tuple(float(weights[id]) for id in ids))
