"""Answers are judged, kept by tenant with what the agent saw, and become rows to train on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agents import Agent, QuotingConfig
from agents.feedback import FILE_NAME, Feedback
from agents.feedback_rows import NO_SOURCE, FeedbackRows, rows_from
from agents.seen import RECENT, Frame, Recent, Seen
from agents.state import Run
from framework.config import Settings
from framework.errors import CallerError, NotFound
from framework.messages import Message, system
from framework.prompts.reading import UNANSWERABLE, Style
from framework.testing.fakes import HashEmbedder
from framework.testing.scripted import ScriptedChat, tool_call
from framework.training.datasets import read_rows, write_rows

REFUND = "How long do refunds take?"
SEARCH = tool_call("search_docs", query="refunds")
RIGHT = "Refunds are paid within five days [1]."


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings({"lectern": {"home": str(tmp_path / "home")}}, tmp_path)


@pytest.fixture
def agent(settings: Settings, collection: Callable[[], Any]) -> Callable[..., Agent]:
    def make(*turns: Any, tenant: str = "default", **options: Any) -> Agent:
        notes = replace(collection(), tenant=tenant)
        model = ScriptedChat(turns, name="large")
        options = {"mode": "write", "model": model, "settings": settings, "tenant": tenant, **options}
        return Agent("guide", "Be kind.", knowledge=[notes], **options)

    return make


def made_of(store: Feedback, **options: Any) -> FeedbackRows:
    return rows_from(store.all("default"), "CC-BY-4.0", **options)


def test_a_judged_answer_is_stored_with_what_the_agent_saw(agent: Callable[..., Agent], settings: Settings) -> None:
    asking = agent(SEARCH, RIGHT)
    answer = asking.run(REFUND)
    asking.feedback(answer.run_id, "up", comment="good")
    (judged,) = Feedback(settings.home).all("default")
    assert (judged.verdict, judged.comment) == ("up", "good")
    assert judged.seen.run.question == REFUND
    assert judged.seen.run.passages[0].hit.chunk.text.startswith("Refunds are paid within five days")
    assert judged.seen.frame.model == "large"


def test_nothing_is_stored_of_a_run_that_nobody_judges(agent: Callable[..., Agent], settings: Settings) -> None:
    agent(SEARCH, RIGHT).run(REFUND)
    assert not (settings.home / FILE_NAME).exists()


def test_the_last_word_counts_and_can_be_taken_back(agent: Callable[..., Agent], settings: Settings) -> None:
    asking, store = agent(SEARCH, RIGHT), Feedback(settings.home)
    run_id = asking.run(REFUND).run_id
    asking.feedback(run_id, "up")
    RECENT.clear()  # as after a restart: what was judged is known from its own record
    asking.feedback(run_id, correction="Refunds take five days.")
    assert [(j.verdict, j.correction) for j in store.all("default")] == [("down", "Refunds take five days.")]
    store.remove("default", run_id)
    assert store.all("default") == []
    with pytest.raises(NotFound, match="no feedback"):
        store.remove("default", run_id)


def test_another_tenant_neither_judges_nor_reads(agent: Callable[..., Agent], settings: Settings) -> None:
    asking, store = agent(SEARCH, RIGHT, tenant="red"), Feedback(settings.home)
    run_id = asking.run(REFUND).run_id
    with pytest.raises(NotFound, match="no run"):
        store.judge("blue", run_id, "up")
    asking.feedback(run_id, "up")
    assert store.all("blue") == []
    with pytest.raises(NotFound):
        store.judge("blue", run_id, "down")
    with pytest.raises(NotFound):
        store.remove("blue", run_id)
    assert len(store.all("red")) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "verdict must be"),
        ({"verdict": "fine"}, "verdict must be"),
        ({"verdict": "up", "correction": "x"}, "needs no correction"),
        ({"correction": " \n"}, "correction is blank"),
        ({"verdict": "down", "correction": " "}, "correction is blank"),
        ({"verdict": "up", "comment": "x" * 20_001}, "at most 20000"),
        ({"verdict": "up", "comment": "\ud800"}, "surrogate"),
    ],
)
def test_a_judgement_that_says_nothing_is_refused(
    agent: Callable[..., Agent], settings: Settings, given: dict[str, Any], message: str
) -> None:
    asking = agent(SEARCH, RIGHT)
    run_id = asking.run(REFUND).run_id
    with pytest.raises(CallerError, match=message):
        asking.feedback(run_id, **given)
    assert Feedback(settings.home).all("default") == []


def test_the_last_answer_of_a_thread_is_judged_by_another_process(
    agent: Callable[..., Agent], settings: Settings
) -> None:
    agent(SEARCH, RIGHT, SEARCH, "Gift cards are not refunded [2].").run(REFUND, thread_id="t")
    asking = agent(SEARCH, "Gift cards are not refunded [2].")
    answer = asking.run("And gift cards?", thread_id="t")
    RECENT.clear()
    judged = Feedback(settings.home).judge_thread("default", "t", "up")
    assert judged.run_id == answer.run_id
    assert [message.content for message in judged.seen.frame.before] == [REFUND, RIGHT.replace(" [1]", "")]
    with pytest.raises(NotFound, match="no thread"):
        Feedback(settings.home).judge_thread("other", "t", "up")


def test_only_the_newest_runs_are_kept_in_memory(agent: Callable[..., Agent]) -> None:
    asking, recent = agent(*[SEARCH, RIGHT] * 3), Recent(2)
    runs = []
    for _ in range(3):
        seen = RECENT.get("default", asking.run(REFUND).run_id)
        assert isinstance(seen, Seen)
        recent.keep("default", seen)
        runs.append(seen.run.id)
    assert [recent.get("default", run) is not None for run in runs] == [False, True, True]


def finished(name: str, size: int = 100) -> Seen:
    """A run whose question has so many characters."""
    return Seen(Run(name, "?" * size), Frame("guide", "large", system("Be kind."), ()))


def test_what_is_kept_in_memory_is_bounded_in_bytes() -> None:
    recent = Recent(most_bytes=80_000)
    for n in range(20):
        recent.keep("default", finished(str(n), 8_000))
    kept = [n for n in range(20) if recent.get("default", str(n))]
    assert kept == list(range(20 - len(kept), 20))
    assert 6 <= len(kept) <= 9
    recent.keep("default", finished("huge", 20_000))
    assert recent.get("default", "huge") is None
    assert recent.get("default", "19") == finished("19", 8_000)


@pytest.mark.parametrize("limits", [{"most": 8}, {"most_bytes": 80_000}])
def test_the_load_of_one_tenant_evicts_its_own_runs(limits: dict[str, int]) -> None:
    recent = Recent(**limits)
    for n in range(2):
        recent.keep("quiet", finished(str(n), 8_000))
    for n in range(50):
        recent.keep("loud", finished(str(n), 8_000))
    assert all(recent.get("quiet", str(n)) for n in range(2))
    assert not recent.get("loud", "0")
    assert recent.get("loud", "49")


def test_a_right_answer_becomes_rows_as_asked_and_as_read(
    agent: Callable[..., Agent], settings: Settings, tmp_path: Path
) -> None:
    asking = agent(SEARCH, RIGHT)
    asking.feedback(asking.run(REFUND).run_id, "up")
    made = made_of(Feedback(settings.home))
    whole, read = made.chat
    assert [message.role for message in whole.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert whole.messages[-1].content == RIGHT
    assert [tool.name for tool in whole.tools] == ["search_docs"]
    assert "Refunds are paid within five days." in read.messages[1].content
    assert read.messages[-1].content == "Refunds are paid within five days."
    assert {row.document for row in made.chat} == {"refunds.md"}
    assert whole.provenance.licence == "CC-BY-4.0"
    assert (whole.provenance.synthetic, whole.provenance.details["model"]) == (True, "large")
    write_rows(tmp_path / "rows.jsonl", made.chat)
    assert read_rows(tmp_path / "rows.jsonl", "chat") == list(made.chat)


def test_a_corrected_answer_is_learned_and_preferred(agent: Callable[..., Agent], settings: Settings) -> None:
    asking = agent(SEARCH, "Refunds take nine days [1].")
    asking.feedback(asking.run(REFUND).run_id, correction="Refunds are paid within five days.")
    made = made_of(Feedback(settings.home))
    assert made.chat[0].messages[-1].content == "Refunds are paid within five days. [1]"
    assert not made.chat[0].provenance.synthetic
    whole, read = made.preference
    assert (whole.chosen.content, whole.rejected.content) == (
        "Refunds are paid within five days. [1]",
        "Refunds take nine days [1].",
    )
    assert read.rejected.content == "Refunds take nine days."


def test_a_wrong_answer_is_set_against_a_right_one_to_the_same_question(
    agent: Callable[..., Agent], settings: Settings
) -> None:
    asking = agent(SEARCH, "Never [1].", SEARCH, RIGHT, SEARCH, "No idea [1].")
    for question, verdict in ((REFUND, "down"), ("how long do refunds take", "up"), ("Who are you?", "down")):
        asking.feedback(asking.run(question).run_id, verdict)
    made = made_of(Feedback(settings.home), forms=("agent",))
    assert len(made.chat) == 1
    assert [(row.chosen.content, row.rejected.content) for row in made.preference] == [(RIGHT, "Never [1].")]
    assert made.skipped == {"wrong, and nobody said what is right": 1}


def test_a_right_refusal_is_learned_as_one(agent: Callable[..., Agent], settings: Settings) -> None:
    asking = agent(mode="quote", quoting=QuotingConfig(threshold=1.0))
    answer = asking.run("Who pays refunds on Mars?")
    assert answer.stop == "declined"
    asking.feedback(answer.run_id, "up")
    made = made_of(Feedback(settings.home), forms=("reading",))
    assert [row.messages[-1].content for row in made.chat] == [UNANSWERABLE]


def test_what_no_passage_holds_gives_no_reading_row(agent: Callable[..., Agent], settings: Settings) -> None:
    asking = agent(SEARCH, RIGHT)
    asking.feedback(asking.run(REFUND).run_id, correction="Ask the desk upstairs, room twelve.")
    made = made_of(Feedback(settings.home))
    assert [row.provenance.details["form"] for row in made.chat] == ["agent"]
    assert made.skipped == {"no passage of the run holds the answer (no reading row)": 1}
    assert made.chat[0].messages[-1] == Message("assistant", "Ask the desk upstairs, room twelve.")


THIRD = {
    "a.md": "Refunds of parcels are shipped.",
    "b.md": "Refunds are days away.",
    "refunds.md": "Refunds are paid within five days. A refund needs the receipt.",
}


@pytest.fixture
def reading(settings: Settings, collection: Callable[..., Any]) -> Agent:
    """An agent that finds the answer to REFUND in its third passage, and numbers its source from 1."""

    def read(messages: Any, tools: Any) -> Any:
        text, style = messages[-1].content, messages[-1].content.endswith(Style.SENTENCE.value)
        said = "Refunds are paid within five days." if style else "five days"
        return said if "five days" in text else UNANSWERABLE

    notes = collection(THIRD, embedder=HashEmbedder())
    notes.search = partial(_in_order, notes)
    model = ScriptedChat([], name="base", roles={"reader": ScriptedChat([read] * 9, "base:answers")})
    return Agent("guide", knowledge=[notes], model=model, settings=settings, mode="read")


async def _in_order(notes: Any, query: str, *, k: int | None = None) -> Any:
    return SimpleNamespace(hits=tuple(notes._chunks()), notices=())


def test_rows_cite_by_the_numbers_that_the_passages_have(reading: Agent, settings: Settings) -> None:
    answer = reading.run(REFUND)
    assert (answer.text, answer.citations[0].document_id) == ("five days [1]", "refunds.md")
    reading.feedback(answer.run_id, "up")
    row = made_of(Feedback(settings.home), forms=("agent",)).chat[0]
    assert "[3]" in row.messages[-2].content.partition("five days")[0]
    assert row.messages[-1].content == "five days [3]"
    assert row.provenance.details["model"] == "base:answers"


def test_a_correction_and_what_it_corrects_cite_by_the_same_numbers(reading: Agent, settings: Settings) -> None:
    reading.feedback(reading.run(REFUND).run_id, correction="They take five days [1], says the desk.")
    (pair,) = made_of(Feedback(settings.home), forms=("agent",)).preference
    assert pair.chosen.content == "They take five days [3], says the desk."
    assert pair.rejected.content == "five days [3]"


def test_an_answer_whose_source_is_no_passage_gives_no_row(reading: Agent, settings: Settings) -> None:
    reading.feedback(reading.run(REFUND).run_id, correction="Five days [7].")
    made = made_of(Feedback(settings.home), forms=("agent",))
    assert (made.chat, made.preference) == ((), ())
    assert made.skipped == {NO_SOURCE: 1}
