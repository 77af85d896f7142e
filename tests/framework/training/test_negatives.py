from __future__ import annotations

from collections.abc import Sequence

from framework.testing.fakes import HashEmbedder
from framework.training.negatives import Passage, embedder_search, mine, positives
from framework.training.rows import PairRow, Provenance


def row(query: str, positive: str, document: str, negatives: tuple[str, ...] = ()) -> PairRow:
    return PairRow(query, positive, document, Provenance("test"), negatives)


RANKED = [
    Passage("own", "d1"),
    Passage("best", "d2"),
    Passage("right", "d1"),
    Passage("next", "d3"),
    Passage("last", "d4"),
]


def ranked(query: str, depth: int) -> Sequence[Passage]:
    return RANKED[:depth]


def test_negatives_are_the_best_passages_of_other_documents() -> None:
    [mined] = mine([row("q", "right", "d1")], ranked, 2)
    assert mined.negatives == ("best", "next")


def test_negatives_that_a_row_has_stay_and_count() -> None:
    [mined] = mine([row("q", "right", "d1", ("given", "next"))], ranked, 3)
    assert mined.negatives == ("given", "next", "best")


def test_the_best_can_be_left_out_since_they_may_answer_too() -> None:
    [mined] = mine([row("q", "right", "d1")], ranked, 2, skip=1)
    assert mined.negatives == ("next", "last")


def test_a_text_equal_to_the_positive_is_no_negative() -> None:
    [mined] = mine([row("q", "best", "d1")], ranked, 2)
    assert mined.negatives == ("next", "last")


def test_too_few_passages_give_fewer_negatives() -> None:
    [mined] = mine([row("q", "right", "d1")], ranked, 9)
    assert mined.negatives == ("best", "next", "last")


def test_a_document_that_fills_the_top_of_a_ranking_is_looked_past() -> None:
    ranking = [*(Passage(f"own {i}", "d1") for i in range(50)), *RANKED]
    [mined] = mine([row("q", "right", "d1")], lambda _, depth: ranking[:depth], 2, depth=3)
    assert mined.negatives == ("best", "next")


def test_nothing_is_searched_for_a_row_that_has_enough() -> None:
    asked: list[str] = []

    def search(query: str, depth: int) -> Sequence[Passage]:
        asked.append(query)
        return RANKED[:depth]

    given = row("has", "right", "d1", ("given",))
    assert mine([given, row("lacks", "right", "d1")], search, 1)[0] == given
    assert asked == ["lacks"]


def test_an_embedder_finds_them_by_cosine() -> None:
    rows = [
        row("red copper", "copper is a red metal", "d1"),
        row("copper wire", "copper makes good wire", "d2"),
        row("cats", "cats sleep", "d3"),
    ]
    search = embedder_search(HashEmbedder(), positives(rows))
    assert [mined.negatives[0] for mined in mine(rows[:2], search, 1)] == [rows[1].positive, rows[0].positive]
