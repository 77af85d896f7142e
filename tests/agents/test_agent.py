"""The `Agent` object: its forms, what it opens, what it refuses."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from agents import Agent, AgentConfig, AnswerDelta, Budget, RunStarted
from framework.config import Settings
from framework.documents import Document
from framework.errors import CallerError, ConfigError, NotFound
from framework.models.base import TENANT, Embedder
from framework.models.chat import PROVIDERS
from framework.testing.scripted import ScriptedChat, scripted_from_file, tool_call
from tools import tool

Scripted = Callable[..., tuple[Agent, ScriptedChat]]


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def test_importing_it_imports_nothing_heavy() -> None:
    heavy = ["langgraph", "langchain_core", "torch", "transformers", "qdrant_edge", "fastapi", "aiosqlite", "Stemmer"]
    code = f"import sys; from agents import Agent; print([name for name in {heavy!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"


def test_the_synchronous_forms_give_the_same(scripted: Scripted) -> None:
    turns = [tool_call("add", a=1, b=2), "It is 3."]
    answer = scripted(turns, tools=[add])[0].run("1 + 2?")
    events = list(scripted(turns, tools=[add])[0].stream("1 + 2?"))
    assert events[-1].answer.text == answer.text == "It is 3."  # type: ignore[union-attr]


async def test_the_synchronous_form_works_inside_a_running_loop(scripted: Scripted) -> None:
    assert scripted(["Hello."])[0].run("Hi.", thread_id="t").text == "Hello."


async def test_one_agent_serves_both_forms_and_several_loops(scripted: Scripted) -> None:
    agent, _ = scripted(["One.", "Two.", "Three."])
    assert (await agent.arun("1", thread_id="t")).text == "One."
    assert agent.run("2", thread_id="t").text == "Two."
    assert (await asyncio.to_thread(lambda: asyncio.run(agent.arun("3", thread_id="t")))).text == "Three."
    assert len(await agent.ahistory("t")) == 6


async def test_two_agents_run_at_once_without_mixing(scripted: Scripted) -> None:
    together = asyncio.Barrier(2)

    @tool
    async def meet() -> str:
        """Wait for the other agent."""
        async with together:
            return "met"

    agents = [scripted([tool_call("meet"), f"I am {name}."], tools=[meet], name=name)[0] for name in ("Ada", "Bob")]
    answers = await asyncio.gather(*(agent.arun("Who?", thread_id=agent.name) for agent in agents))
    assert [answer.text for answer in answers] == ["I am Ada.", "I am Bob."]


def test_one_agent_answers_many_threads_of_the_program(settings: Settings) -> None:
    agent = Agent(model=ScriptedChat([lambda messages, tools: messages[-1].content.upper()] * 16), settings=settings)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: agent.run(f"question {n}", thread_id=f"t{n}").text, range(16)))
    assert answers == [f"QUESTION {n}" for n in range(16)]


def test_its_model_is_told_the_tenant_that_it_works_for(settings: Settings) -> None:
    tenants = []

    class Asked(ScriptedChat):
        async def stream(self, *args: Any, **options: Any) -> Any:
            tenants.append(TENANT.get())
            async for delta in super().stream(*args, **options):
                yield delta

    for tenant in ("acme", None):
        Agent(model=Asked(["Yes."]), settings=settings, tenant=tenant).run("Go.")
    assert tenants == ["acme", settings.core.tenant]


def test_leaving_a_synchronous_stream_early_ends_the_run(settings: Settings) -> None:
    closed = []

    class Endless(ScriptedChat):
        async def stream(self, messages: Any, **options: Any) -> Any:
            try:
                while True:
                    async for delta in ScriptedChat(["more and more"]).stream(messages):
                        if delta.content:
                            yield delta
            finally:
                closed.append(True)

    events = Agent(model=Endless([]), settings=settings).stream("Go.")
    assert isinstance(next(events), RunStarted)
    assert isinstance(next(events), AnswerDelta)
    events.close()
    assert closed == [True]


def test_it_answers_from_an_indexed_collection(settings: Settings, embedder: Embedder) -> None:
    from indexers.library import Library

    text = (
        "# Refunds\n\nRefunds are paid within five days. A refund needs the receipt.\n\n# Gifts\n\nThey last a year.\n"
    )
    with Library.open(settings) as library:
        library.index_documents([Document("refunds.md", text, title="Refunds")], "shop")
    with Agent(knowledge=["shop"], model=ScriptedChat([]), settings=settings) as agent:
        answer = agent.run("Within how many days are refunds paid?")
    assert answer.text.startswith("Refunds are paid within five days.")
    assert [text[c.start : c.end] for c in answer.citations] == [c.quote for c in answer.citations]


def test_an_unknown_collection_is_an_error_to_the_caller(settings: Settings) -> None:
    with Agent(knowledge=["nowhere"], model=ScriptedChat([]), settings=settings) as agent, pytest.raises(NotFound):
        agent.run("Hello?")


def test_tools_come_by_name_and_the_model_too(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROVIDERS._own, "scripted", scripted_from_file)
    script = tmp_path / "script.jsonl"
    script.write_text('[{"name": "calculator", "arguments": {"expression": "6*7"}}]\n"It is 42."\n')
    agent = Agent(tools=["calculator"], model=f"scripted:{script}", settings=settings)
    assert agent.run("6 * 7?").text == "It is 42."


def test_it_is_what_the_configuration_says(tmp_path: Path) -> None:
    section = {"name": "clerk", "collections": ["a"], "mode": "write", "budget": {"steps": 3}}
    config = Settings({"agent": section}, tmp_path).section("agent", AgentConfig)
    agent = Agent.from_config(config)
    assert (agent.name, agent.knowledge, agent.mode, agent.budget) == ("clerk", ("a",), "write", Budget(steps=3))
    with pytest.raises(ConfigError, match=r"agent\.budget"):
        Settings({"agent": {"budget": {"stepps": 3}}}, tmp_path).section("agent", AgentConfig)


@pytest.mark.parametrize(
    ("options", "field"),
    [({"mode": "guess"}, "mode"), ({"knowledge": "docs"}, "knowledge"), ({"tools": "calculator"}, "tools")],
)
def test_what_can_not_be_meant_is_refused_at_once(options: dict[str, Any], field: str) -> None:
    with pytest.raises(CallerError) as caught:
        Agent(**options)
    assert caught.value.field == field


def test_something_that_can_not_be_searched_is_no_knowledge(settings: Settings) -> None:
    with pytest.raises(CallerError, match="no knowledge"):
        Agent(knowledge=[42], settings=settings).run("Hi.")  # type: ignore[list-item]  # the wrong value is the point


@pytest.mark.parametrize("question", ["", " \n"])
def test_an_empty_question_is_refused(scripted: Scripted, question: str) -> None:
    with pytest.raises(CallerError, match="empty"):
        scripted([])[0].run(question)


def test_a_thread_and_a_history_exclude_each_other(scripted: Scripted) -> None:
    from framework.messages import user

    with pytest.raises(CallerError, match="own history"):
        scripted([])[0].run("Hi.", thread_id="t", history=[user("Hello.")])
