"""How an agent answers where the model, or an adapter that it was trained with, can't be used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agents import Agent, AnswerDelta, Budget
from agents.deps import UNREAD, UNTRAINED
from agents.finish import DECLINED
from framework.config import Settings
from framework.errors import Conflict, ModelUnavailable, NotFound
from framework.models.base import ChatModel, Role
from framework.prompts.reading import UNANSWERABLE
from framework.prompts.tool_formats import NO_TOOL
from framework.testing.scripted import ScriptedChat, tool_call
from tools import tool

QUESTION = "Within how many days are refunds paid?"
QUOTED = "Refunds are paid within five days. [1]"


class Deactivated(ScriptedChat):
    """A model whose adapters somebody has switched off."""

    def in_role(self, role: Role) -> ChatModel | None:
        raise Conflict(f"The adapter for {role} is deactivated.", hint="Activate it.")


@tool
def scores(year: int) -> str:
    """Look up who won the football championship of a year."""
    return f"Germany won in {year}."


@pytest.fixture
def asking(settings: Settings, notes: Any, embedder: Any) -> Callable[..., Agent]:
    notes.embedder = embedder
    return lambda model, **options: Agent(**{"knowledge": [notes], "settings": settings, "model": model, **options})


async def test_an_agent_whose_reader_is_switched_off_quotes_and_says_why(asking: Callable[..., Agent]) -> None:
    answer = await asking(Deactivated([])).arun(QUESTION)
    assert answer.text.splitlines()[0] == QUOTED
    assert answer.notices == (f"{UNREAD} The adapter for reader is deactivated. Activate it.",)


async def test_an_agent_that_is_told_to_read_does_not_read_with_another_model(asking: Callable[..., Agent]) -> None:
    with pytest.raises(Conflict, match="reader is deactivated"):
        await asking(Deactivated(["five days"] * 9), mode="read").arun(QUESTION)


async def test_an_agent_whose_model_is_not_here_quotes_and_says_so(asking: Callable[..., Agent]) -> None:
    answer = await asking("nobody/has-this-model").arun(QUESTION)
    assert answer.text.splitlines()[0] == QUOTED
    (notice,) = answer.notices
    assert notice.startswith(f"{UNREAD} ")
    assert "nobody/has-this-model" in notice


@pytest.mark.parametrize("mode", ["read", "write"])
async def test_one_that_needs_its_model_fails_without_it(asking: Callable[..., Agent], mode: str) -> None:
    with pytest.raises(ModelUnavailable, match="nobody/has-this-model"):
        await asking("nobody/has-this-model", mode=mode).arun(QUESTION)


async def test_a_model_that_does_not_exist_is_a_mistake_in_every_mode(asking: Callable[..., Agent]) -> None:
    with pytest.raises(NotFound, match="no model 'smolm'"):
        await asking("smolm").arun(QUESTION)


class Switched(ScriptedChat):
    """A model that has its reader at the first look, and then no more."""

    looked = 0

    def in_role(self, role: Role) -> ChatModel | None:
        self.looked += 1
        return self.roles[role] if self.looked == 1 else None


async def test_how_a_run_answers_is_settled_once(asking: Callable[..., Agent]) -> None:
    model = Switched([UNANSWERABLE] * 9, roles={"reader": ScriptedChat([])})
    answer = await asking(model).arun(QUESTION)
    assert (answer.stop, len(model.requests)) == ("declined", 2)


async def test_a_model_whose_caller_is_switched_off_is_led_and_says_so(settings: Settings) -> None:
    model = Deactivated(["scores", tool_call("scores", year=1954)], guided=True)
    answer = await Agent(tools=[scores], settings=settings, model=model).arun("Who won in 1954?")
    assert answer.text == "According to the tool scores: Germany won in 1954."
    assert answer.notices == (f"{UNTRAINED} The adapter for caller is deactivated. Activate it.",)


@pytest.mark.parametrize("budget", [Budget(), Budget(steps=2)])
async def test_a_writer_that_says_that_it_found_nothing_declines(asking: Callable[..., Agent], budget: Budget) -> None:
    model = ScriptedChat([tool_call("search_docs", query="refunds on Mars"), f"{DECLINED}\n"])
    agent = asking(model, mode="write", budget=budget)
    events = [event async for event in agent.astream("Who pays refunds on Mars?")]
    answer = events[-1].answer  # type: ignore[union-attr]
    assert (answer.text, answer.stop) == (DECLINED, "declined")
    assert "".join(event.text for event in events if isinstance(event, AnswerDelta)) == DECLINED


async def test_a_writer_that_begins_like_one_that_declines_is_heard(asking: Callable[..., Agent]) -> None:
    said = f"{DECLINED[:-1]} fully."
    model = ScriptedChat([tool_call("search_docs", query="refunds"), said])
    answer = await asking(model, mode="write", budget=Budget(steps=2)).arun(QUESTION)
    assert answer.text.startswith(said)
    assert answer.stop == "answered"


async def test_a_caller_that_is_barred_and_says_that_no_tool_fits_gives_no_answer(settings: Settings) -> None:
    again = tool_call("scores", year=1954)
    model = ScriptedChat([], guided=True, roles={"caller": ScriptedChat([again, again, NO_TOOL])})
    agent = Agent(tools=[scores], settings=settings, model=model)
    events = [event async for event in agent.astream("Who won in 1954?")]
    answer = events[-1].answer  # type: ignore[union-attr]
    assert NO_TOOL not in "".join(event.text for event in events if isinstance(event, AnswerDelta))
    assert answer.stop == "repeated_call"
    assert "Germany won in 1954." in answer.text
