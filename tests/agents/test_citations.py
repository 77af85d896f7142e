"""Citations: markers, the sentences that they stand for, and what is checked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import Agent, AnswerDelta
from agents.citations import (
    Checker,
    MarkerStream,
    Shelf,
    best_sentence,
    cite,
    sentence_with,
    statements,
    without_markers,
)
from agents.finish import UNSUPPORTED
from agents.state import Passage
from framework.models.base import AUTO, REQUIRED
from framework.testing.scripted import ScriptedChat, tool_call

Scripted = Callable[..., tuple[Agent, ScriptedChat]]
SEARCH = tool_call("search_docs", query="refunds receipt parcels")


def passages(notes: Any) -> list[Passage]:
    return [Passage(number, "search_docs", hit) for number, hit in enumerate(notes._chunks(), 1)]


def checker(notes: Any) -> Checker:
    shelf = Shelf(notes, "default", "notes")
    return Checker({passage.number: passage for passage in passages(notes)}, {"search_docs": shelf})


async def streamed(pieces: list[str], check: Checker) -> str:
    stream = MarkerStream(check)
    return "".join([*[await stream.feed(piece) for piece in pieces], await stream.finish()])


async def test_a_written_answer_is_cited_with_the_sentence_that_supports_it(scripted: Scripted, notes: Any) -> None:
    agent, _ = scripted([SEARCH, "You need the receipt for a refund [1]."], knowledge=[notes])
    answer = await agent.arun("What does a refund need?")
    (citation,) = answer.citations
    assert (citation.number, citation.quote, citation.title) == (1, "A refund needs the receipt.", "Refunds")
    assert notes.texts["refunds.md"][citation.start : citation.end] == citation.quote
    assert answer.supported


async def test_an_agent_with_knowledge_has_to_search_before_it_writes(scripted: Scripted, notes: Any) -> None:
    agent, model = scripted([SEARCH, "Five days [1]."], knowledge=[notes])
    await agent.arun("How long?")
    assert [request.tool_choice for request in model.requests] == [REQUIRED, AUTO]


async def test_markers_of_no_passage_are_removed_and_noted(scripted: Scripted, notes: Any) -> None:
    agent, _ = scripted([SEARCH, "Five days [9], with receipt [1, 42]."], knowledge=[notes])
    answer = await agent.arun("How long?")
    assert answer.text == "Five days, with receipt [1]."
    assert [notice for notice in answer.notices if "names no passage" in notice] == [
        "The marker [9] names no passage and was removed.",
        "The marker [42] names no passage and was removed.",
    ]


async def test_an_answer_without_citation_says_that_nothing_supports_it(scripted: Scripted, notes: Any) -> None:
    agent, _ = scripted([SEARCH, "I feel it is five days."], knowledge=[notes])
    events = [event async for event in agent.astream("How long?")]
    answer = events[-1].answer
    assert not answer.supported
    assert answer.text.endswith(UNSUPPORTED)
    assert "".join(event.text for event in events if isinstance(event, AnswerDelta)) == answer.text


async def test_a_document_that_changed_after_it_was_read_is_not_cited(scripted: Scripted, notes: Any) -> None:
    def change(messages: Any, tools: Any) -> str:
        notes.texts["refunds.md"] = "Refunds were abolished."
        return "Refunds are paid within five days [1]."

    answer = await scripted([SEARCH, change], knowledge=[notes])[0].arun("How long?")
    assert (answer.citations, answer.supported) == ((), False)
    assert answer.text.startswith("Refunds are paid within five days.\n")
    assert any("has changed" in notice for notice in answer.notices)


async def test_a_passage_that_is_not_in_its_document_is_not_cited(scripted: Scripted, notes: Any) -> None:
    honest = notes._chunks
    notes._chunks = lambda: [replace(hit, chunk=replace(hit.chunk, text="A refund of a million.")) for hit in honest()]
    answer = await scripted([SEARCH, "A million [1]."], knowledge=[notes])[0].arun("How much?")
    assert answer.citations == ()


async def test_a_passage_found_twice_keeps_its_number_and_new_ones_go_on(scripted: Scripted, notes: Any) -> None:
    turns = [
        tool_call("search_docs", query="refunds"),
        tool_call("search_docs", query="parcels refunds"),
        "Parcels leave on weekdays [2].",
    ]
    agent, model = scripted(turns, knowledge=[notes])
    answer = await agent.arun("When?")
    second = model.requests[2].messages[-1].content
    assert "[1] Refunds" in second
    assert "[2] Shipping" in second
    assert answer.citations[0].document_id == "shipping.md"


async def test_a_search_that_fails_is_no_passage(scripted: Scripted, notes: Any) -> None:
    async def broken(query: str, *, k: int | None = None) -> None:
        raise OSError("disk gone")

    notes.search = broken
    answer = await scripted([SEARCH, "Hm [1]."], knowledge=[notes])[0].arun("How long?")
    assert any("disk gone" in notice for notice in answer.notices)
    assert not answer.supported


async def test_when_a_limit_ends_the_run_the_passages_found_are_told_with_citations(
    scripted: Scripted, notes: Any
) -> None:
    agent, _ = scripted([SEARCH] * 9, knowledge=[notes])
    answer = await agent.arun("What does a refund need?")
    assert answer.stop == "repeated_call"
    assert "A refund needs the receipt. [1]" in answer.text
    assert answer.citations[0].quote == "A refund needs the receipt."


def test_a_marker_stands_for_the_sentence_that_it_is_in_or_follows() -> None:
    text = "Alpha is first [1]. Beta is second. [2] Gamma [1][3] is third."
    assert {number: [" ".join(s.split()) for s in said] for number, said in statements(text).items()} == {
        1: ["Alpha is first .", "Gamma is third."],
        2: ["Beta is second."],
        3: ["Gamma is third."],
    }


def test_a_statement_that_shares_no_word_cites_the_whole_passage(notes: Any) -> None:
    passage = passages(notes)[0]
    assert best_sentence("Zebra!", passage.hit.chunk.text) == (0, len(passage.hit.chunk.text))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a [1] b", "a [1] b"),
        ("a [1][99] b", "a [1] b"),
        ("a [ 1 ] b", "a [ 1 ] b"),
        ("a [1; 3] b", "a [1][3] b"),
        ("a [99]", "a"),
        ("a [", "a ["),
        ("list[0] and [x]", "list[0] and [x]"),
        ("a [1234567] b", "a [1234567] b"),
    ],
)
async def test_only_valid_markers_pass(notes: Any, text: str, kept: str) -> None:
    assert await streamed([text], checker(notes)) == kept


@given(
    st.lists(st.sampled_from(["[1]", "[2, 9]", " [9]", "[", "]", "1", " ", "Refunds are paid.", "\n", ",", "é"])),
    st.data(),
)
def test_the_same_text_comes_however_it_is_cut(collection: type[Any], parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    check = checker(collection())
    assert asyncio.run(streamed(pieces, check)) == asyncio.run(streamed([text], check))


@given(
    st.lists(st.text(alphabet="ab. \n\u00e9\u4e2d\U0001f600[1]"), min_size=1, max_size=4),
    st.lists(st.integers(1, 6)),
    st.data(),
)
def test_every_quotation_stands_at_its_span(
    collection: type[Any], texts: list[str], numbers: list[int], data: st.DataObject
) -> None:
    notes = collection({f"{n}.md": text for n, text in enumerate(texts)})
    shelf = {"search_docs": Shelf(notes, "default", "notes")}
    answer = " ".join(f"{data.draw(st.text(alphabet='ab. 中'))} [{number}]" for number in numbers)
    for citation in asyncio.run(cite(answer, passages(notes), shelf)):
        document = notes.document("default", "notes", citation.document_id, citation.version)
        assert document.text[citation.start : citation.end] == citation.quote


def test_later_turns_see_no_markers() -> None:
    assert without_markers("Five days [1], or six [2, 3].") == "Five days, or six."


@pytest.mark.parametrize(
    ("answer", "text", "within", "held"),
    [
        ("5", "In 2015 the shop opened. It takes 5 days.", None, "It takes 5 days."),
        ("art", "It started late. There is art.", None, "There is art."),
        ("京都", "大阪です。私は京都に住む。", None, "私は京都に住む。"),
        ("nine", "One is here. Two is there. Three is here.", (13, 41), "Two is there."),
    ],
)
def test_the_sentence_that_holds_an_answer(answer: str, text: str, within: tuple[int, int] | None, held: str) -> None:
    start, end = sentence_with(answer, "What is there?", text, within)
    assert text[start:end].strip() == held
