"""Quoting agents: they search by themselves and answer with the documents' own sentences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agents import Agent, AnswerDelta, Budget, QuotingConfig, ThoughtDelta, ToolCalled, ToolReturned
from agents.finish import DECLINED
from agents.prompting import search_query
from framework.messages import assistant, user
from framework.models.base import Choice, Embedder, ToolChoice
from framework.testing.scripted import ScriptedChat, tool_call
from tools import tool

Scripted = Callable[..., tuple[Agent, ScriptedChat]]
QUESTION = "Within how many days are refunds paid?"
UNKNOWN = "Who won the football championship of the world in Switzerland?"


@pytest.fixture
def quoting(scripted: Scripted, notes: Any, embedder: Embedder) -> Scripted:
    notes.embedder = embedder
    return lambda turns=(), **options: scripted(turns, **{"knowledge": [notes], "mode": "quote", **options})


@tool
def scores(year: int) -> str:
    """Look up who won the football championship of a year."""
    return f"Germany won in {year}."


async def test_the_answer_is_a_sentence_of_the_documents_and_the_model_is_not_asked(
    quoting: Scripted, notes: Any
) -> None:
    agent, model = quoting()
    events = [event async for event in agent.astream(QUESTION)]
    answer = events[-1].answer
    assert answer.text.splitlines()[0] == "Refunds are paid within five days. [1]"
    assert (answer.stop, answer.supported, answer.steps, answer.tool_calls) == ("answered", True, 0, 1)
    assert model.requests == []
    assert [type(event) for event in events[1:3]] == [ToolCalled, ToolReturned]
    assert "".join(event.text for event in events if isinstance(event, AnswerDelta)) == answer.text
    for citation in answer.citations:
        document = notes.document("default", "notes", citation.document_id, citation.version)
        assert document.text[citation.start : citation.end] == citation.quote


async def test_it_declines_where_no_passage_answers(quoting: Scripted) -> None:
    answer = await quoting()[0].arun(UNKNOWN)
    assert (answer.text, answer.stop, answer.supported, answer.citations) == (DECLINED, "declined", False, ())


async def test_a_higher_threshold_declines_more(quoting: Scripted) -> None:
    agent, _ = quoting(quoting=QuotingConfig(threshold=1.0))
    assert (await agent.arun(QUESTION)).stop == "declined"


async def test_a_model_whose_choice_has_weight_is_asked(quoting: Scripted) -> None:
    agent, model = quoting(["1"], quoting=QuotingConfig(choice=1.0))
    assert (await agent.arun(QUESTION)).stop == "answered"
    assert isinstance(model.requests[0].constraint, Choice)


async def test_it_declines_where_nothing_is_found(quoting: Scripted) -> None:
    assert (await quoting()[0].arun("Xylophone?")).text == DECLINED


async def test_where_no_passage_answers_the_model_chooses_another_tool_and_calls_it(quoting: Scripted) -> None:
    agent, model = quoting(["scores", tool_call("scores", year=1954)], tools=[scores])
    answer = await agent.arun(UNKNOWN)
    assert answer.text == "According to the tool scores: Germany won in 1954."
    assert (answer.stop, answer.supported, answer.steps, answer.tool_calls) == ("answered", False, 2, 2)
    choosing, calling = model.requests
    assert choosing.constraint == Choice(("scores", "none"))
    assert calling.tool_choice == ToolChoice.named("scores")
    assert [spec.name for spec in calling.tools] == ["scores"]
    assert [message.role for message in calling.messages] == ["system", "user"]


async def test_a_model_that_chooses_no_tool_declines(quoting: Scripted) -> None:
    answer = await quoting(["none"], tools=[scores])[0].arun(UNKNOWN)
    assert (answer.text, answer.stop) == (DECLINED, "declined")


async def test_a_model_that_does_not_make_its_call_declines(quoting: Scripted) -> None:
    agent, _ = quoting(["scores", "I think it was Hungary."], tools=[scores])
    events = [event async for event in agent.astream(UNKNOWN)]
    assert events[-1].answer.text == DECLINED
    assert [event.text for event in events if isinstance(event, ThoughtDelta)] == ["I think it was Hungary."]


async def test_a_wrong_call_is_mended(quoting: Scripted) -> None:
    turns = ["scores", tool_call("scores", year="many"), tool_call("scores", year=1954)]
    agent, model = quoting(turns, tools=[scores])
    assert (await agent.arun(UNKNOWN)).text.endswith("Germany won in 1954.")
    assert "schema" in model.requests[2].messages[-1].content


async def test_the_same_wrong_call_again_ends_the_run(quoting: Scripted) -> None:
    wrong = tool_call("scores", year="many")
    answer = await quoting(["scores", *[wrong] * 9], tools=[scores])[0].arun(UNKNOWN)
    assert (answer.stop, answer.steps) == ("repeated_call", 3)


async def test_a_question_that_continues_the_one_before_is_searched_with_it(quoting: Scripted, notes: Any) -> None:
    agent, _ = quoting()
    await agent.arun("How long does shipping to Norway take?", thread_id="t")
    answer = await agent.arun("And refunds?", thread_id="t")
    assert notes.queries[1] == "How long does shipping to Norway take? And refunds?"
    assert answer.notices[0].endswith(notes.queries[1])


async def test_two_collections_are_both_searched(quoting: Scripted, collection: type[Any], embedder: Embedder) -> None:
    one = collection({"a.md": "Refunds are paid within five days."}, collection="shop", embedder=embedder)
    two = collection({"b.md": "Refunds are paid within nine days."}, collection="the office", embedder=embedder)
    answer = await quoting(knowledge=[one, two])[0].arun(QUESTION)
    assert {citation.document_id for citation in answer.citations} == {"a.md", "b.md"}
    assert [citation.number for citation in answer.citations] == [1, 2]
    assert answer.tool_calls == 2


async def test_a_document_that_changes_while_it_is_read_is_not_quoted(quoting: Scripted, notes: Any) -> None:
    search = notes.search

    async def then_change(query: str, *, k: int | None = None) -> Any:
        found = await search(query, k=k)
        notes.texts["refunds.md"] = "Refunds were abolished."
        return found

    notes.search = then_change
    answer = await quoting()[0].arun(QUESTION)
    assert all(citation.document_id != "refunds.md" for citation in answer.citations)
    assert any("has changed" in notice for notice in answer.notices)


async def test_a_search_that_fails_is_told(quoting: Scripted, notes: Any) -> None:
    async def broken(query: str, *, k: int | None = None) -> Any:
        raise OSError("the disk is gone")

    notes.search = broken
    answer = await quoting()[0].arun(QUESTION)
    assert "the disk is gone" in answer.text
    assert answer.stop == "declined"


async def test_a_searchs_notices_reach_the_answer(quoting: Scripted, notes: Any) -> None:
    notes.notices = ("Only the lexical ranking was used.",)
    assert "Only the lexical ranking was used." in (await quoting()[0].arun(QUESTION)).notices


async def test_without_a_tool_call_in_the_budget_nothing_is_searched(quoting: Scripted, notes: Any) -> None:
    answer = await quoting(budget=Budget(tool_calls=0))[0].arun(QUESTION)
    assert (answer.stop, notes.queries) == ("tool_calls", [])


async def test_when_the_time_is_up_the_passages_are_told(quoting: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    from agents import quoted

    async def slow(*args: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(quoted, "choose_sentences", slow)
    answer = await quoting(budget=Budget(seconds=1.0))[0].arun(QUESTION)
    assert answer.stop == "seconds"
    assert "Refunds are paid within five days. [1]" in answer.text


@pytest.mark.parametrize(
    ("question", "combined"),
    [
        ("and in 2023?", True),
        ("What about Norway?", True),
        ("How much does it cost?", True),
        ("Why?", True),
        ("挪威呢？", True),
        ("How long does shipping to Norway take?", False),
        ("How do I index a folder of documents?", False),
        ("Does the insurer pay when a customer reports it late, after this year has ended?", False),
    ],
)
def test_what_counts_as_a_continuation(question: str, combined: bool) -> None:
    turns = [user("What was the revenue?"), assistant("Nine.")]
    query, notice = search_query(question, turns)
    assert query == (f"What was the revenue? {question}" if combined else question)
    assert bool(notice) == combined
    assert search_query(question, []) == (question, "")
