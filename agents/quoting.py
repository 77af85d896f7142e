"""Quoting: the sentences of the found passages that answer a question, or none.

Small models choose better than they write. Each sentence gets a few features (`evidence`); one linear combination of
them orders the sentences, a second one of the best sentence's says how likely it is that the quotation answers. Both
tables, and the threshold below which the question is declined, are fitted by `bench/quoting_tune.py fit` on HotpotQA,
SciFact and MTRAG-UN, and measured on other sets by `bench/quoting_tune.py report`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.config import QuotingConfig
from agents.evidence import FEATURES, Candidate, candidates, features, repeats
from framework.documents import Hit
from framework.messages import user
from framework.models.base import ChatModel, Choice, Embedder, GenerationParams, complete
from framework.retrieval.bm25 import Analyzer

# How much each feature speaks for a sentence, against the other sentences of the same question.
ORDER: Mapping[str, float] = {
    "cosine": 5.26,
    "overlap": 3.17,
    "overlap_nearby": 0.45,
    "overlap_heading": 2.32,
    "rank": 1.52,
    "new_terms": 2.24,
    "finished": 0.74,
    "asks": -1.11,
}
# How much these of the best sentence, and its lead over the fourth, speak for its being an answer at all.
ANSWER: Mapping[str, float] = {"bias": -3.64, "cosine": 4.32, "overlap_heading": 1.25, "lead": 0.35}
_PROMPT = """Sentences:
{sentences}
0. None of these.

Question: {question}
Which sentence answers the question? Reply with its number only."""


@dataclass(frozen=True, slots=True)
class Quoted:
    """A quotation: `text` stands at `start:end` of the document version that `hit` names."""

    hit: Hit
    start: int
    end: int
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Quotation:
    """What the passages say to the question.

    Attributes:
        closest: the best quotations, best first, also when they do not suffice.
        confidence: estimated probability that they answer, 0 to 1.
        declined: the confidence is below the threshold, or there was nothing to quote.
    """

    closest: tuple[Quoted, ...]
    confidence: float
    declined: bool

    @property
    def sentences(self) -> tuple[Quoted, ...]:
        """The quotations to answer with; none if declined."""
        return () if self.declined else self.closest


async def quote(
    question: str,
    hits: Sequence[Hit],
    embedder: Embedder,
    model: ChatModel | None = None,
    config: QuotingConfig = QuotingConfig(),  # noqa: B008  frozen
) -> Quotation:
    """The one to `config.sentences` sentences that answer the question best, neighbours joined to one quotation.

    Args:
        hits: passages, best first.
        model: chooses among a shortlist, where `config.choice` gives its choice a weight.
    """
    found = [c for c in candidates(hits[: config.hits]) if not repeats(question, c.text)]
    if not found:
        return Quotation((), 0.0, declined=True)
    rows = await asyncio.to_thread(features, question, found, embedder, Analyzer(config.language))
    scores = rows @ table(ORDER)
    order = list(np.argsort(-scores, kind="stable"))
    confidence = answer_probability(rows[order[0]], lead(scores))
    if model is not None and config.choice:
        scores, order = await _with_choice(question, found, scores, order, model, config)
    picked = [i for i in order[: config.sentences] if scores[i] >= scores[order[0]] - config.within]
    return Quotation(
        tuple(_joined(found, sorted(picked, key=lambda i: _place(found[i])), scores)),
        confidence,
        declined=confidence < config.threshold,
    )


def table(weights: Mapping[str, float]) -> NDArray[np.float64]:
    """The weights in the order of `FEATURES`."""
    return np.array([weights.get(name, 0.0) for name in FEATURES])


def lead(scores: NDArray[np.float64]) -> float:
    """How far the best score is above the fourth, where few sentences are found above the last."""
    best = np.sort(scores)[::-1]
    return float(best[0] - best[min(3, len(best) - 1)])


def answer_probability(best: NDArray[np.float64], ahead: float) -> float:
    """Logistic in the best sentence's features and its lead."""
    logit = ANSWER["bias"] + float(best @ table(ANSWER)) + ANSWER.get("lead", 0.0) * ahead
    return float(1 / (1 + np.exp(-logit)))


async def _with_choice(
    question: str,
    found: Sequence[Candidate],
    scores: NDArray[np.float64],
    order: Sequence[int],
    model: ChatModel,
    config: QuotingConfig,
) -> tuple[NDArray[np.float64], list[int]]:
    """Scores and order with the model's word on the shortlist; what is not on it stays behind."""
    shortlist = list(order[: config.shortlist])
    chosen = await choice(question, [found[i].text for i in shortlist], model)
    scores = scores.copy()
    scores[shortlist] += config.choice * chosen
    return scores, [*sorted(shortlist, key=lambda i: -scores[i]), *order[config.shortlist :]]


async def choice(question: str, texts: Sequence[str], model: ChatModel) -> NDArray[np.float64]:
    """The model's log-probability of choosing each text, among all of them and none; at most nine.

    Its answer is held to one digit by a grammar. A server that reports no log-probabilities gives its one choice.
    """
    numbered = "\n".join(f"{number}. {' '.join(text.split())}" for number, text in enumerate(texts, 1))
    options = tuple(str(number) for number in range(len(texts) + 1))
    answer = await complete(
        model,
        [user(_PROMPT.format(sentences=numbered, question=question))],
        constraint=Choice(options),
        params=GenerationParams(max_tokens=4, logprobs=20),
    )
    known = {token.strip(): logprob for token, logprob in answer.logprobs[0].top} if answer.logprobs else {}
    known.setdefault(answer.message.content.strip(), 0.0)
    least = min([-10.0, *(known[option] for option in options if option in known)])
    told = np.array([known.get(option, least) for option in options])
    return np.asarray((told - np.logaddexp.reduce(told))[1:], dtype=np.float64)


def _place(candidate: Candidate) -> tuple[int, int]:
    return candidate.rank, candidate.start


def _joined(found: Sequence[Candidate], picked: Sequence[int], scores: NDArray[np.float64]) -> list[Quoted]:
    """Quotations best first; sentences that follow each other in one passage are one quotation."""
    quoted: list[Quoted] = []
    for i in picked:
        sentence, score = found[i], float(scores[i])
        chunk = sentence.hit.chunk
        before = quoted[-1] if quoted and quoted[-1].hit is sentence.hit else None
        if before and not any(c.isalnum() for c in chunk.text[before.end - chunk.start : sentence.start - chunk.start]):
            quoted.pop()
            text = chunk.text[before.start - chunk.start : sentence.end - chunk.start]
            quoted.append(Quoted(sentence.hit, before.start, sentence.end, text, max(before.score, score)))
        else:
            quoted.append(Quoted(sentence.hit, sentence.start, sentence.end, sentence.text, score))
    return sorted(quoted, key=lambda q: -q.score)
