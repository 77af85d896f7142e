"""Fit the tables of agents/quoting.py on the tuning sets, or report how the shipped ones do on other sets.

    LECTERN_DATA=../shared/data python -m bench.quoting_tune fit --home /tmp/quoting
    LECTERN_DATA=../shared/data python -m bench.quoting_tune report --home /tmp/quoting [--model smollm2-135m-instruct]

`--home` keeps the index and the sentences' vectors, so that a second run embeds nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from agents.config import QuotingConfig
from agents.evidence import FEATURES, Candidate, candidates, features
from agents.quoting import ANSWER, ORDER, Quotation, choice, lead, quote, table
from bench.quoting_data import Question, Task, reporting, tuning
from framework.config import Settings
from framework.documents import Hit, content_hash
from framework.models.base import Embedder, Vectors
from framework.models.chat import load_chat
from framework.retrieval.bm25 import Analyzer
from framework.retrieval.filters import In, Not
from indexers.library import Library

Matrix = NDArray[np.float64]
RIDGE = 1e-3
# Columns of the second table: more of them do no better on a set that is left out.
ANSWER_FEATURES = [FEATURES.index(name) for name in ANSWER if name in FEATURES]
WITHIN = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
CHOICE_SAMPLE = 80


@dataclass(frozen=True, slots=True)
class Case:
    """One search: its candidates, their features, and which of them support an answer (none, if there is none)."""

    question: Question
    found: list[Candidate]
    rows: Matrix
    right: NDArray[np.bool_]


class Remembering:
    """An embedder that embeds a sentence once, however many questions and runs find it; `save` keeps what it knows."""

    def __init__(self, inner: Embedder, folder: Path) -> None:
        self.info = inner.info
        self.embed_query = inner.embed_query
        self.count_tokens = inner.count_tokens
        self.token_spans = inner.token_spans
        self._embed = inner.embed_documents
        self._file = folder / f"sentences-{inner.info.id}.npz"
        self._known: dict[str, Vectors] = {}
        if self._file.exists():
            with np.load(self._file, allow_pickle=False) as stored:
                self._known = dict(zip(stored["keys"].tolist(), stored["vectors"], strict=True))

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        keys = [content_hash(text) for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._known}
        self._known.update(zip(new, self._embed(list(new.values())), strict=True))
        return np.stack([self._known[key] for key in keys])

    def save(self) -> None:
        np.savez(self._file, keys=np.array(list(self._known)), vectors=np.stack(list(self._known.values())))


async def cases(task: Task, library: Library, without_gold: bool) -> list[Case]:
    """Each question searched as it is; and, if asked for, once more with its gold documents out of reach."""
    library.index_documents(task.documents, task.name)
    retriever, analyzer = library.retriever(task.name), Analyzer("en")
    embedder = Remembering(library.embedder, library.home)
    k, found = QuotingConfig().hits, []
    for question in task.questions:
        hits = (await retriever.search(question.text, k=k)).hits
        found.append(_case(question, hits, embedder, analyzer))
        if without_gold and question.gold:
            others = Not(In("document_id", tuple(question.gold)))
            hits = (await retriever.search(question.text, k=k, filter=others)).hits
            found.append(_case(Question(f"{question.group} mismatched", question.text), hits, embedder, analyzer))
    embedder.save()
    return [case for case in found if case.found]


def _case(question: Question, hits: Sequence[Hit], embedder: Embedder, analyzer: Analyzer) -> Case:
    found = candidates(hits)
    right = np.array([_supports(question, c.hit.chunk.document_id, c.start, c.end) for c in found], dtype=np.bool_)
    return Case(question, found, features(question.text, found, embedder, analyzer), right)


def _supports(question: Question, document: str, start: int, end: int) -> bool:
    """Whether the span holds a gold span, or at least half of one, or lies in it by half."""
    return any(
        2 * (min(end, last) - max(start, first)) >= min(end - start, last - first)
        for first, last in question.gold.get(document, ())
    )


def fit_order(chosen: Iterable[Case]) -> Matrix:
    """Weights that make the right sentences' share of a softmax over each question's sentences largest."""
    pairs = [(torch.tensor(c.rows), torch.tensor(c.right)) for c in chosen if c.right.any()]

    def loss(weights: torch.Tensor) -> torch.Tensor:
        scores = [(rows @ weights, right) for rows, right in pairs]
        missed = [torch.logsumexp(s, 0) - torch.logsumexp(s[right], 0) for s, right in scores]
        return torch.stack(missed).mean()

    return least(loss, len(FEATURES))


def fit_answer(chosen: Sequence[Case], order: Matrix) -> Matrix:
    """Logistic regression of "the best sentences hold a right one" on bias, the best one's features and the lead.

    Answerable and unanswerable searches weigh the same in all.
    """
    inputs = torch.tensor(np.stack([_answer_row(c, order) for c in chosen]))
    label = torch.tensor([float(c.right[top(c, order)].any()) for c in chosen], dtype=torch.float64)
    share = torch.where(label > 0, 0.5 / label.sum(), 0.5 / (1 - label).sum())

    def loss(weights: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(inputs @ weights, label, share, reduction="sum")

    return least(loss, inputs.shape[1])


def _answer_row(case: Case, order: Matrix) -> Matrix:
    scores = case.rows @ order
    return np.array([1.0, *case.rows[int(np.argmax(scores)), ANSWER_FEATURES], lead(scores)])


def top(case: Case, order: Matrix) -> NDArray[np.intp]:
    return np.argsort(-(case.rows @ order), kind="stable")[: QuotingConfig().sentences]


def least(loss: Callable[[torch.Tensor], torch.Tensor], size: int) -> Matrix:
    """The weights of least loss with a ridge."""
    weights = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(weights) + RIDGE * weights.square().sum()
        value.backward()
        return value

    optimizer.step(step)
    return weights.detach().numpy()


def threshold(chosen: Sequence[Case], order: Matrix, answer: Matrix) -> tuple[float, float, float]:
    """The confidence that parts quotations that answer from others best; the shares answered and declined there."""
    sure = np.array([1 / (1 + np.exp(-_answer_row(c, order) @ answer)) for c in chosen])
    label = np.array([c.right[top(c, order)].any() for c in chosen])
    steps = np.linspace(0.05, 0.95, 181)
    quality = [(sure[label] >= t).mean() + (sure[~label] < t).mean() for t in steps]
    best = float(steps[int(np.argmax(quality))])
    return best, float((sure[label] >= best).mean()), float((sure[~label] < best).mean())


def ranked(chosen: Iterable[Case], order: Matrix) -> tuple[float, float]:
    """Share of answerable searches whose best sentence, and one of whose best three, is right."""
    places = [np.flatnonzero(c.right[np.argsort(-(c.rows @ order), kind="stable")])[0] for c in chosen if c.right.any()]
    return float(np.mean([p == 0 for p in places])), float(np.mean([p < 3 for p in places]))


def spread(chosen: Sequence[Case], order: Matrix) -> float:
    """How far below the best score a sentence may lie to be quoted too: the best F1 of right sentences quoted."""
    quality = {within: _quoted_f1([c for c in chosen if c.right.any()], order, within) for within in WITHIN}
    print("F1 of quoted sentences by how far they may lie below the best:", quality)
    return max(quality, key=lambda within: quality[within])


def _quoted_f1(chosen: Sequence[Case], order: Matrix, within: float) -> float:
    values = []
    for case in chosen:
        scores, best = case.rows @ order, top(case, order)
        taken = case.right[[i for i in best if scores[i] >= scores[best[0]] - within]]
        wanted = min(int(case.right.sum()), QuotingConfig().sentences)
        values.append(2 * taken.sum() / (len(taken) + wanted))
    return round(float(np.mean(values)), 4)


def fit(library: Library) -> None:
    """Print the tables to paste into agents/quoting.py, and how they do on each set when it is left out."""
    chosen = asyncio.run(cases(tuning(data_folder()), library, without_gold=True))
    groups = ("hotpot", "scifact", "mtrag")
    for group in groups:
        rest = [c for c in chosen if not c.question.group.startswith(group)]
        own = [c for c in chosen if c.question.group.startswith(group)]
        order = fit_order(rest)
        answer = fit_answer(rest, order)
        first, three = ranked(own, order)
        bar = threshold(rest, order, answer)[0]
        answered, declined = _at(own, order, answer, bar)
        plain = ranked(own, np.eye(len(FEATURES))[FEATURES.index("cosine")])
        print(f"{group} left out: best right {first:.3f}, in three {three:.3f}")
        print(f"  by cosine alone {plain[0]:.3f}, {plain[1]:.3f}")
        print(f"  answered where right {answered:.3f}, declined where not {declined:.3f}")
    order = fit_order(chosen)
    answer = fit_answer(chosen, order)
    print("ORDER =", dict(zip(FEATURES, order.round(2).tolist(), strict=True)))
    print("ANSWER =", dict(zip(ANSWER, answer.round(2).tolist(), strict=True)))
    print("threshold, answered, declined =", threshold(chosen, order, answer))
    print("within =", spread(chosen, order))


def _at(chosen: Sequence[Case], order: Matrix, answer: Matrix, bar: float) -> tuple[float, float]:
    sure = np.array([1 / (1 + np.exp(-_answer_row(c, order) @ answer)) for c in chosen])
    label = np.array([c.right[top(c, order)].any() for c in chosen])
    return float((sure[label] >= bar).mean()), float((sure[~label] < bar).mean())


async def weigh_choice(library: Library, name: str) -> None:
    """What the chat model's choice adds on tuning questions: accuracy by its weight beside the fitted order."""
    chosen = [c for c in await cases(tuning(data_folder()), library, without_gold=False) if c.right.any()]
    picks = np.random.default_rng(0).permutation(len(chosen))[:CHOICE_SAMPLE]
    model, order, size = load_chat(name), table(ORDER), QuotingConfig().shortlist
    results: list[tuple[Matrix, Matrix, NDArray[np.bool_]]] = []
    started = time.perf_counter()
    for case in (chosen[i] for i in picks):
        scores = case.rows @ order
        best = np.argsort(-scores, kind="stable")[:size]
        shuffled = np.random.default_rng(len(results)).permutation(best)  # else a bias for "1" would look like skill
        told = await choice(case.question.text, [case.found[i].text for i in shuffled], model)
        results.append((scores[shuffled], told, case.right[shuffled]))
    print(f"{(time.perf_counter() - started) / len(results):.2f} s a choice, {len(results)} questions")
    for weight in (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 1e6):
        share = np.mean([right[int(np.argmax(scores + weight * told))] for scores, told, right in results])
        print(f"choice weight {weight:g}: best right {share:.3f}")


async def report(library: Library, model_name: str | None) -> None:
    """How the shipped tables do where nothing was fitted."""
    task = reporting(data_folder())
    library.index_documents(task.documents, task.name)
    retriever, embedder = library.retriever(task.name), Remembering(library.embedder, library.home)
    model = load_chat(model_name) if model_name else None
    told: dict[str, list[tuple[bool, bool, bool, bool, int]]] = {}
    for question in task.questions:
        hits = (await retriever.search(question.text, k=QuotingConfig().hits)).hits
        quotation = await quote(question.text, hits, embedder, model)
        one = await quote(question.text, hits, embedder, model, QuotingConfig(sentences=1))
        reached = any(_supports(question, h.chunk.document_id, h.chunk.start, h.chunk.end) for h in hits)
        facts = (reached, _answers(question, one), _answers(question, quotation), quotation.declined)
        told.setdefault(question.group, []).append((*facts, sum(len(q.text) for q in quotation.closest)))
    embedder.save()
    for group, rows in told.items():
        reached_, top_, held, declined, length = np.array(rows, dtype=float).T
        kept = held * (1 - declined)
        figures = {
            "retrieved": reached_,
            "top sentence right": top_,
            "any sentence right": held,
            "declined": declined,
            "answered rightly": kept,
            "characters": length,
        }
        print(f"{group}: {len(rows)} questions, " + ", ".join(f"{k} {v.mean():.3f}" for k, v in figures.items()))


def _answers(question: Question, quotation: Quotation) -> bool:
    """Whether a quotation holds a gold span (all of it where it is an answer of a few words)."""
    return any(_holds(question, q.hit.chunk.document_id, q.start, q.end) for q in quotation.closest)


def _holds(question: Question, document: str, start: int, end: int) -> bool:
    if question.group == "xquad":
        return any(start <= first and last <= end for first, last in question.gold.get(document, ()))
    return _supports(question, document, start, end)


def data_folder() -> Path:
    """Where the evaluation data is."""
    return Path(os.environ.get("LECTERN_DATA", "../shared/data")).resolve()


def main() -> None:
    parser = argparse.ArgumentParser(description="Fit or report quoting.")
    parser.add_argument("command", choices=("fit", "choice", "report"))
    parser.add_argument("--home", type=Path, help="where the index is kept; a temporary folder if not given")
    parser.add_argument("--model", help="chat model that chooses too")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = chosen.home or Path(temporary)
        home.mkdir(parents=True, exist_ok=True)
        with Library.open(Settings({"lectern": {"home": str(home)}}, base=home)) as library:
            if chosen.command == "fit":
                fit(library)
            elif chosen.command == "choice":
                asyncio.run(weigh_choice(library, chosen.model or "smollm2-135m-instruct"))
            else:
                asyncio.run(report(library, chosen.model))


if __name__ == "__main__":
    main()
