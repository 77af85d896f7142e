from __future__ import annotations

import re
import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.metrics import METRICS, Metric, MetricKind, parse_metric
from evals.metrics.answers import contains, token_f1, tokens
from evals.sample import Cited, Output, Sample

words = st.text(st.sampled_from("aAtThHeE nN12.,!-'$é"), max_size=30)


def squad_normalise(text: str) -> str:
    """SQuAD 1.1's published normalisation, as its description gives it."""
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def squad_f1(prediction: str, gold: str) -> float:
    said, wanted = squad_normalise(prediction).split(), squad_normalise(gold).split()
    same = sum((Counter(said) & Counter(wanted)).values())
    if not said or not wanted:
        return float(said == wanted)
    if same == 0:
        return 0.0
    precision, recall = same / len(said), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


def score(name: str, output: Output, *answers: str, **about: object) -> float | None:
    return parse_metric(name).score(Sample("q", "question", answers=answers, **about), output)  # type: ignore[arg-type]


@given(prediction=words, gold=words)
def test_f1_and_exact_match_are_squads(prediction: str, gold: str) -> None:
    assert score("f1", Output(text=prediction), gold or "x") == pytest.approx(
        squad_f1(prediction, gold or "x"), abs=1e-9
    )
    equal = squad_normalise(prediction) == squad_normalise(gold or "x")
    assert score("exact_match", Output(text=prediction), gold or "x") == float(equal)


@given(text=st.text(max_size=40))
def test_an_answer_agrees_with_itself(text: str) -> None:
    assert token_f1(tokens(text), tokens(text)) == 1.0
    if tokens(text):
        assert contains(tokens(f"so {text} it is"), tokens(text))


@given(a=st.text(max_size=30), b=st.text(max_size=30))
def test_f1_is_symmetric_and_between_zero_and_one(a: str, b: str) -> None:
    value = token_f1(tokens(a), tokens(b))
    assert 0 <= value <= 1
    assert value == token_f1(tokens(b), tokens(a))


@given(text=st.text(), gold=st.text(min_size=1), declined=st.booleans(), answerable=st.booleans())
def test_no_metric_gives_anything_but_a_finite_number(text: str, gold: str, declined: bool, answerable: bool) -> None:
    sample = Sample("q", "question", {"d": 1}, (gold,), answerable)
    output = Output(("d",), text, (Cited("e", text),), declined)
    for name in METRICS:
        kind = METRICS.get(name)
        value = Metric(name, kind, 5 if kind.cutoff == "required" else None).score(sample, output)
        assert value is None or 0 <= value <= 1


def test_chinese_is_compared_by_character() -> None:
    assert tokens("锣鼓点。在1905年") == ["锣", "鼓", "点", "在", "1905", "年"]
    assert score("f1", Output(text="锣鼓经"), "锣鼓点", language="zh") == pytest.approx(2 / 3)
    assert score("answer_contained", Output(text="节奏型称为锣鼓点。"), "锣鼓点", language="zh") == 1.0


def test_articles_are_words_in_other_languages() -> None:
    assert tokens("a the x", "pt") == ["a", "the", "x"]


def test_composed_and_decomposed_letters_are_equal() -> None:
    assert tokens("caf\u00e9") == tokens("cafe\u0301")


def test_an_answer_is_contained_only_as_whole_words() -> None:
    assert score("answer_contained", Output(text="It has 1308 rooms."), "308") == 0.0
    assert score("answer_contained", Output(text="It has 308 rooms."), "308") == 1.0


def test_the_best_of_several_accepted_answers_counts() -> None:
    assert score("f1", Output(text="Lima"), "Cusco", "Lima") == 1.0


def test_declining_an_answerable_question_scores_nothing_whatever_its_words() -> None:
    refusal = Output(text="Paris is not in the documents", declined=True)
    for name in ("exact_match", "f1", "answer_contained", "answer_recall", "answered", "abstention"):
        assert score(name, refusal, "Paris") == 0.0


def test_declining_is_right_where_there_is_no_answer() -> None:
    refusal = Output(declined=True)
    assert score("declined", refusal, answerable=False) == score("abstention", refusal, answerable=False) == 1.0
    assert score("answered", refusal, answerable=False) is None
    assert score("f1", refusal, answerable=False) is None


def test_a_citation_is_found_by_document_or_by_quote() -> None:
    by_document = Output(citations=(Cited("d1", "nothing"),))
    by_quote = Output(citations=(Cited("x", "The panthers gave up just 308 points."),))
    part_of_long_answer = Output(citations=(Cited("x", "gave up 308 points"),))
    wrong = Output(citations=(Cited("x", "Something else"), Cited("y", "")))
    assert score("citation_found", by_document, "308", relevant={"d1": 1}) == 1.0
    assert score("citation_found", by_quote, "308") == 1.0
    assert score("citation_found", part_of_long_answer, "They gave up 308 points in all") == 1.0
    assert score("citation_found", wrong, "308", relevant={"d1": 1}) == 0.0
    assert score("citation_found", Output(), "308") == 0.0


def test_citation_precision_is_a_share_of_those_made() -> None:
    output = Output(citations=(Cited("d1", ""), Cited("d2", ""), Cited("d3", ""), Cited("d4", "")))
    assert score("citation_precision", output, relevant={"d1": 1, "d2": 0}) == 0.25
    assert score("citation_precision", Output(), relevant={"d1": 1}) is None


def test_a_metric_that_returns_nan_is_an_error() -> None:
    broken = Metric("broken", MetricKind("broken", "", lambda sample, output, k: float("nan"), lambda sample: True))
    with pytest.raises(ValueError, match="broken returned nan"):
        broken.score(Sample("q", "question"), Output())
