"""How good an answer's text is, and whether declining was right.

Exact match and F1 follow SQuAD's evaluation script (Rajpurkar et al. 2016): lower case, no punctuation, no English
articles. Scripts without spaces between words are compared character by character, as MLQA and CMRC do.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter

from evals.metrics.base import metric
from evals.sample import Output, Sample

_ARTICLES = re.compile(r"\b(a|an|the)\b")
# Han, kana, bopomofo, Thai, Lao, Khmer, Burmese: no spaces between words.
_UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3100-\u312f\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff])"
)


def tokens(text: str, language: str = "en") -> list[str]:
    """The text as it is compared: normalised words, and single characters of scripts without spaces."""
    text = unicodedata.normalize("NFC", text).lower()
    text = "".join(c for c in text if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
    if language == "en":
        text = _ARTICLES.sub(" ", text)
    return _UNSPACED.sub(r" \1 ", text).split()


def contains(outer: list[str], inner: list[str]) -> bool:
    """`inner`, which must not be empty, stands in `outer` as one run."""
    width = len(inner)
    return bool(inner) and any(outer[i : i + width] == inner for i in range(len(outer) - width + 1))


def token_f1(prediction: list[str], gold: list[str]) -> float:
    """Harmonic mean of the precision and recall of the bags of tokens; 1 where both are empty."""
    if not prediction or not gold:
        return float(prediction == gold)
    shared = sum((Counter(prediction) & Counter(gold)).values())
    return 2 * shared / (len(prediction) + len(gold))


def has_answers(sample: Sample) -> bool:
    return sample.answerable and bool(sample.answers)


def unanswerable(sample: Sample) -> bool:
    return not sample.answerable


def answerable(sample: Sample) -> bool:
    return sample.answerable


def _said(sample: Sample, output: Output) -> list[str]:
    """The answer's tokens; a declined question has none, whatever words declined it."""
    return [] if output.declined else tokens(output.text, sample.language)


@metric("exact_match", applies=has_answers)
def exact_match(sample: Sample, output: Output, k: int | None) -> float:
    """1 where the answer equals an accepted one after normalising."""
    said = _said(sample, output)
    return float(not output.declined and any(said == tokens(gold, sample.language) for gold in sample.answers))


@metric("f1", applies=has_answers)
def f1(sample: Sample, output: Output, k: int | None) -> float:
    """Token F1 with the closest accepted answer."""
    if output.declined:
        return 0.0
    said = _said(sample, output)
    return max(token_f1(said, tokens(gold, sample.language)) for gold in sample.answers)


@metric("answer_contained", applies=has_answers)
def answer_contained(sample: Sample, output: Output, k: int | None) -> float:
    """1 where an accepted answer stands in the answer's text."""
    said = _said(sample, output)
    return float(any(contains(said, tokens(gold, sample.language)) for gold in sample.answers))


@metric("answer_recall", applies=has_answers)
def answer_recall(sample: Sample, output: Output, k: int | None) -> float:
    """Share of an accepted answer's tokens that the text has, best of the accepted; for long answers."""
    said = Counter(_said(sample, output))
    golds = [Counter(tokens(gold, sample.language)) for gold in sample.answers]
    return max(((said & gold).total() / gold.total() for gold in golds if gold), default=0.0)


@metric("declined", applies=unanswerable)
def declined(sample: Sample, output: Output, k: int | None) -> float:
    """Share of the unanswerable questions that were declined."""
    return float(output.declined)


@metric("answered", applies=answerable)
def answered(sample: Sample, output: Output, k: int | None) -> float:
    """Share of the answerable questions that were not declined."""
    return float(not output.declined)


@metric("abstention")
def abstention(sample: Sample, output: Output, k: int | None) -> float:
    """Share of all questions rightly declined or rightly not."""
    return float(output.declined is not sample.answerable)
