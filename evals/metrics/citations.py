"""Whether the citations lead to the answer."""

from __future__ import annotations

from evals.metrics.answers import contains, tokens
from evals.metrics.base import metric
from evals.sample import Cited, Output, Sample


def has_gold(sample: Sample) -> bool:
    """It is known where the answer stands, or what it is."""
    return sample.answerable and (bool(sample.answers) or any(grade > 0 for grade in sample.relevant.values()))


def leads_to_answer(sample: Sample, citation: Cited) -> bool:
    """The document is a relevant one, or the quote holds an accepted answer or is a part of one."""
    if sample.relevant.get(citation.document_id, 0) > 0:
        return True
    quote = tokens(citation.quote, sample.language)
    golds = [tokens(gold, sample.language) for gold in sample.answers]
    return any(contains(quote, gold) or contains(gold, quote) for gold in golds)


@metric("citation_found", applies=has_gold)
def citation_found(sample: Sample, output: Output, k: int | None) -> float:
    """1 where at least one citation leads to the answer."""
    return float(any(leads_to_answer(sample, citation) for citation in output.citations))


@metric("citation_precision", applies=has_gold)
def citation_precision(sample: Sample, output: Output, k: int | None) -> float | None:
    """Share of the citations that lead to the answer, over samples with any."""
    if not output.citations:
        return None
    return sum(leads_to_answer(sample, citation) for citation in output.citations) / len(output.citations)
