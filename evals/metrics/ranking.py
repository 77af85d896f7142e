"""How good a ranking of documents is, computed by trec_eval through ir-measures.

Gains are linear in the grade. The order is the target's own: trec_eval sorts by score and breaks ties by id, so each
document gets a score that falls with its rank, which leaves nothing to break.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from evals.metrics.base import metric
from evals.sample import Output, Sample


def judged(sample: Sample) -> bool:
    """At least one document is relevant; without one, no ranking is better than another."""
    return any(grade > 0 for grade in sample.relevant.values())


def ranked(sample: Sample, output: Output) -> list[str]:
    """The ranking that counts: without the documents that this sample excludes, and each document once."""
    return [document for document in dict.fromkeys(output.ranking) if document not in sample.excluded]


@cache
def _measure(name: str, k: int | None) -> Any:
    import ir_measures

    measure = getattr(ir_measures, name)
    return measure @ k if k is not None else measure


def _evaluate(name: str, k: int | None, sample: Sample, ranking: list[str]) -> float:
    if not ranking:
        return 0.0
    import ir_measures

    run = {"q": {document: float(len(ranking) - rank) for rank, document in enumerate(ranking)}}
    judgements = {"q": {document: max(grade, 0) for document, grade in sample.relevant.items()}}
    (result,) = ir_measures.pytrec_eval.iter_calc([_measure(name, k)], judgements, run)
    return float(result.value)


@metric("ndcg", applies=judged, cutoff="optional")
def ndcg(sample: Sample, output: Output, k: int | None) -> float:
    """Normalised discounted cumulative gain, linear gains."""
    return _evaluate("nDCG", k, sample, ranked(sample, output))


@metric("recall", applies=judged, cutoff="required")
def recall(sample: Sample, output: Output, k: int | None) -> float:
    """Share of the relevant documents among the first k."""
    return _evaluate("R", k, sample, ranked(sample, output))


@metric("precision", applies=judged, cutoff="required")
def precision(sample: Sample, output: Output, k: int | None) -> float:
    """Share of the first k that are relevant; places left empty count as not relevant."""
    return _evaluate("P", k, sample, ranked(sample, output))


@metric("mrr", applies=judged, cutoff="optional")
def mrr(sample: Sample, output: Output, k: int | None) -> float:
    """1 / rank of the first relevant document; 0 below the cutoff."""
    return _evaluate("RR", None, sample, ranked(sample, output)[:k])


@metric("map", applies=judged, cutoff="optional")
def average_precision(sample: Sample, output: Output, k: int | None) -> float:
    """Mean of the precision at each relevant document."""
    return _evaluate("AP", k, sample, ranked(sample, output))


@metric("success", applies=judged, cutoff="required")
def success(sample: Sample, output: Output, k: int | None) -> float:
    """1 where a relevant document is among the first k."""
    return _evaluate("Success", k, sample, ranked(sample, output))
