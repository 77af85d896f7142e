"""Threads: they last, go on after a crash, keep tenants apart, and believe nobody."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from agents import Agent, AnswerDelta, RunFinished, ToolCalled
from agents.threads import StrictJson, Threads
from framework.config import Settings
from framework.errors import CallerError, Conflict, ModelUnavailable, NotFound, OperatorError, StoreCorrupt
from framework.testing.scripted import ScriptedChat, tool_call
from tools import Tool, ToolContext, tool

Scripted = Callable[..., tuple[Agent, ScriptedChat]]


def booking(log: list[tuple[str, str]]) -> Tool:
    @tool
    def book(room: str, context: ToolContext) -> str:
        """Book a room."""
        log.append((room, context.idempotency_key))
        return f"{room} is booked"

    return book


def stored(settings: Settings) -> sqlite3.Connection:
    return sqlite3.connect(settings.home / "threads.sqlite")


async def test_a_thread_remembers_its_turns_and_calls(scripted: Scripted) -> None:
    turns = [tool_call("book", room="red"), "Booked.", "The red one."]
    agent, model = scripted(turns, tools=[booking([])])
    await agent.arun("Book the red room.", thread_id="t")
    await agent.arun("Which one?", thread_id="t")
    assert [message.role for message in model.requests[2].messages[1:]] == [
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
    ]
    assert [message.content for message in await agent.ahistory("t")][-1] == "The red one."


async def test_searches_and_markers_are_not_carried_into_later_turns(scripted: Scripted, notes: Any) -> None:
    turns = [tool_call("search_docs", query="refunds"), "Five days [1].", "Yes."]
    agent, model = scripted(turns, knowledge=[notes])
    await agent.arun("How long?", thread_id="t")
    await agent.arun("Sure?", thread_id="t")
    assert [message.content for message in model.requests[2].messages[1:]] == ["How long?", "Five days.", "Sure?"]


async def test_without_a_thread_nothing_is_stored(scripted: Scripted, settings: Settings) -> None:
    await scripted(["Hello."])[0].arun("Hello?")
    assert not settings.home.exists()


async def test_a_finished_run_leaves_one_state(scripted: Scripted, settings: Settings) -> None:
    agent, _ = scripted([tool_call("book", room="a"), "Done.", "Again."], tools=[booking([])])
    await agent.arun("One.", thread_id="t")
    await agent.arun("Two.", thread_id="t")
    with stored(settings) as database:
        assert database.execute("SELECT count(*) FROM checkpoints").fetchone() == (1,)
        assert database.execute("SELECT count(*) FROM writes").fetchone() == (0,)


async def test_another_tenants_thread_does_not_exist(scripted: Scripted) -> None:
    await scripted(["Secret."], tenant="one")[0].arun("Hello.", thread_id="t")
    other, model = scripted(["New."], tenant="two")
    for call in (other.ahistory, other.aresume, other.aforget):
        with pytest.raises(NotFound, match="no thread 't'"):
            await call("t")
    await other.arun("Hello.", thread_id="t")
    assert len(model.requests[0].messages) == 2


async def test_a_forgotten_thread_is_gone(scripted: Scripted, settings: Settings) -> None:
    agent, _ = scripted(["Hello."])
    await agent.arun("Hi, I am Ada.", thread_id="t")
    await agent.aforget("t")
    with pytest.raises(NotFound):
        await agent.ahistory("t")
    with stored(settings) as database:
        assert database.execute("SELECT count(*) FROM checkpoints").fetchone() == (0,)


@pytest.mark.parametrize("name", ["", "x" * 201])
async def test_a_thread_id_is_neither_empty_nor_endless(scripted: Scripted, name: str) -> None:
    with pytest.raises(CallerError, match="thread id"):
        await scripted(["Hello."])[0].arun("Hi.", thread_id=name)


async def test_a_thread_answers_one_question_at_a_time(scripted: Scripted) -> None:
    inside, leave = asyncio.Event(), asyncio.Event()

    @tool
    async def wait() -> str:
        """Wait."""
        inside.set()
        await leave.wait()
        return "waited"

    agent, _ = scripted([tool_call("wait"), "Done."], tools=[wait])
    first = asyncio.create_task(agent.arun("One.", thread_id="t"))
    await inside.wait()
    with pytest.raises(Conflict, match="answering another question"):
        await agent.arun("Two.", thread_id="t")
    leave.set()
    assert (await first).text == "Done."


async def test_a_model_that_goes_down_leaves_the_thread_to_be_resumed(scripted: Scripted) -> None:
    log: list[tuple[str, str]] = []
    turns = [tool_call("book", room="a"), ModelUnavailable("gone"), "Booked."]
    agent, _ = scripted(turns, tools=[booking(log)])
    with pytest.raises(ModelUnavailable):
        await agent.arun("Book a.", thread_id="t")
    answer = await agent.aresume("t")
    assert (answer.text, answer.tool_calls, len(log)) == ("Booked.", 1, 1)


async def test_the_same_question_again_continues_the_run_and_another_starts_anew(scripted: Scripted) -> None:
    log: list[tuple[str, str]] = []
    turns = [tool_call("book", room="a"), ModelUnavailable("gone"), "Booked.", ModelUnavailable("gone"), "Else."]
    agent, model = scripted(turns, tools=[booking(log)])
    with pytest.raises(ModelUnavailable):
        await agent.arun("Book a.", thread_id="t")
    assert (await agent.arun("Book a.", thread_id="t")).text == "Booked."
    assert len(log) == 1
    with pytest.raises(ModelUnavailable):
        await agent.arun("Lost question.", thread_id="t")
    assert (await agent.arun("Something else.", thread_id="t")).text == "Else."
    assert "Lost question." not in [message.content for message in model.requests[-1].messages]


async def test_a_finished_run_gives_its_answer_again(scripted: Scripted) -> None:
    agent, _ = scripted(["Hello."])
    answer = await agent.arun("Hi.", thread_id="t")
    assert await agent.aresume("t") == answer


class Crash(BaseException):
    """Stands for the end of the process."""


def crash_at(monkeypatch: pytest.MonkeyPatch, number: int) -> list[str]:
    """From the given write on, none reaches the disk."""
    writes: list[str] = []

    def crashing(name: str) -> None:
        original = getattr(AsyncSqliteSaver, name)

        async def write(self: Any, *args: Any, **kwargs: Any) -> Any:
            writes.append(name)
            if len(writes) >= number:
                raise Crash
            return await original(self, *args, **kwargs)

        monkeypatch.setattr(AsyncSqliteSaver, name, write)

    crashing("aput")
    crashing("aput_writes")
    return writes


@pytest.mark.parametrize("number", range(1, 16))
async def test_a_crash_at_any_write_is_made_good(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    log: list[tuple[str, str]] = []

    def reply(messages: Any, tools: Any) -> Any:
        return "Booked." if messages[-1].role == "tool" else [tool_call("book", room="a"), tool_call("book", room="b")]

    agent, _ = scripted([reply] * 9, tools=[booking(log)])
    with monkeypatch.context() as patch:
        crash_at(patch, number)
        try:
            answer = await agent.arun("Book.", thread_id="t")
        except Crash:
            answer = None
    if answer is None:
        try:
            answer = await agent.aresume("t")
        except NotFound:
            assert log == []  # nothing was stored yet, and nothing done
            answer = await agent.arun("Book.", thread_id="t")
    assert (answer.text, answer.tool_calls) == ("Booked.", 2)
    assert {room: len({key for r, key in log if r == room}) for room in "ab"} == {"a": 1, "b": 1}


def test_after_kill_9_the_run_goes_on_and_no_effect_happens_twice(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed_agent.py")
    command = [sys.executable, str(script), str(tmp_path)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -9
    resumed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert resumed.stdout == "Both rooms are booked. answered 2\n"
    attempts = Counter((tmp_path / "attempts").read_text().split())
    assert attempts == {"red": 1, "blue": 2}
    effects = (tmp_path / "effects").read_text().splitlines()
    assert [line.split()[0] for line in effects] == ["red", "blue"]


async def test_a_finished_call_is_not_repeated_when_its_neighbour_was_cut_off(scripted: Scripted) -> None:
    log: list[str] = []
    red_is_stored = asyncio.Event()

    @tool
    async def book(room: str) -> str:
        """Book a room."""
        log.append(room)
        if room == "blue" and log.count("blue") == 1:
            await red_is_stored.wait()
            await asyncio.Event().wait()
        return f"{room} is booked"

    agent, _ = scripted([[tool_call("book", room="red"), tool_call("book", room="blue")], "Both."], tools=[book])

    async def consume() -> None:
        async for _ in agent.astream("Book.", thread_id="t"):
            pass

    original = AsyncSqliteSaver.aput_writes

    async def write(self: Any, config: Any, writes: Any, *rest: Any) -> None:
        await original(self, config, writes, *rest)
        if any(channel == "results" and value for channel, value in writes):
            red_is_stored.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AsyncSqliteSaver, "aput_writes", write)
        task = asyncio.create_task(consume())
        await red_is_stored.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (await agent.aresume("t")).text == "Both."
    assert Counter(log) == {"red": 1, "blue": 2}


async def test_closing_the_stream_ends_model_and_tools_and_the_thread_stays_usable(scripted: Scripted) -> None:
    ended = asyncio.Event()

    @tool
    async def hang() -> str:
        """Hang."""
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return ""

    agent, _ = scripted([tool_call("hang"), "Fine."], tools=[hang])
    async with aclosing(agent.astream("Go.", thread_id="t")) as events:
        async for event in events:
            if isinstance(event, ToolCalled):
                break
    await asyncio.wait_for(ended.wait(), 5)
    assert (await agent.arun("Hello?", thread_id="t")).text == "Fine."


async def test_a_cancelled_task_ends_the_models_stream(settings: Settings) -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    class Endless(ScriptedChat):
        async def stream(self, messages: Any, **options: Any) -> Any:
            try:
                started.set()
                await asyncio.Event().wait()
                yield
            finally:
                ended.set()

    task = asyncio.create_task(Agent(model=Endless([]), settings=settings).arun("Go.", thread_id="t"))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_a_resumed_stream_repeats_what_was_said_so_that_the_pieces_add_up(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agents import finish, nodes

    async def broken(*args: Any) -> Any:
        raise OSError("the disk is full")

    agent, _ = scripted(["Said already."])
    monkeypatch.setattr(nodes, "conclude", broken)
    with pytest.raises(OSError, match="full"):
        await agent.arun("Speak.", thread_id="t")
    monkeypatch.setattr(nodes, "conclude", finish.conclude)
    events = [event async for event in agent.astream_resume("t")]
    assert "".join(event.text for event in events if isinstance(event, AnswerDelta)) == "Said already."
    assert isinstance(events[-1], RunFinished)


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


CONSTRUCTOR = {"lc": 2, "type": "constructor", "id": ["os", "mkdir"], "kwargs": {}, "args": []}


@pytest.mark.parametrize("kind", ["pickle", "msgpack", "json", "null"])
@pytest.mark.parametrize("table", ["checkpoints", "writes"])
async def test_a_state_that_something_else_wrote_is_refused_and_nothing_of_it_runs(
    scripted: Scripted, settings: Settings, tmp_path: Path, kind: str, table: str
) -> None:
    trap = tmp_path / "trap"
    agent, _ = scripted([tool_call("book", room="a"), ModelUnavailable("gone"), "Done."], tools=[booking([])])
    with pytest.raises(ModelUnavailable):
        await agent.arun("Go.", thread_id="t")
    payload = (
        pickle.dumps(Bomb(trap)) if kind == "pickle" else json.dumps({**CONSTRUCTOR, "args": [str(trap)]}).encode()
    )
    column = "checkpoint" if table == "checkpoints" else "value"
    with stored(settings) as database:
        assert database.execute(f"UPDATE {table} SET type = ?, {column} = ?", (kind, payload)).rowcount > 0
    for call in (agent.aresume, agent.ahistory):
        with pytest.raises(StoreCorrupt):
            await call("t")
    assert not trap.exists()


async def test_a_changed_letter_and_another_threads_state_are_refused(scripted: Scripted, settings: Settings) -> None:
    agent, _ = scripted(["Pay Ada.", "Pay Bob."])
    await agent.arun("Whom?", thread_id="a")
    await agent.arun("Whom?", thread_id="b")
    with stored(settings) as database:
        (state,) = database.execute("SELECT checkpoint FROM checkpoints WHERE thread_id LIKE '%\"a\"%'").fetchone()
        database.execute("UPDATE checkpoints SET checkpoint = ? WHERE thread_id LIKE '%\"b\"%'", (state,))
        changed = state.replace(b"Pay Ada", b"Pay Eve")
        assert changed != state
        database.execute("UPDATE checkpoints SET checkpoint = ? WHERE thread_id LIKE '%\"a\"%'", (changed,))
    for thread in "ab":
        with pytest.raises(StoreCorrupt, match="did not write"):
            await agent.ahistory(thread)
    await agent.aforget("a")
    with pytest.raises(NotFound):
        await agent.ahistory("a")


async def test_a_file_that_is_no_database_and_a_cut_key_are_refused(scripted: Scripted, settings: Settings) -> None:
    agent, _ = scripted(["Hello."])
    await agent.arun("Hi.", thread_id="t")
    key = (settings.home / "threads.key").read_bytes()
    (settings.home / "threads.key").write_bytes(key[:5])
    with pytest.raises(StoreCorrupt, match="no key of 32 bytes"):
        await agent.ahistory("t")
    (settings.home / "threads.key").write_bytes(key)
    (settings.home / "threads.sqlite").write_bytes(b"no database " * 999)
    with pytest.raises(OperatorError, match="can't be read: file is not a database"):
        await agent.ahistory("t")


async def test_a_thread_id_that_is_no_text_is_refused(scripted: Scripted) -> None:
    with pytest.raises(CallerError, match="lone surrogate"):
        await scripted(["Hello."])[0].arun("Hi.", thread_id="a\ud800")


def test_the_serializer_writes_nothing_but_json() -> None:
    serde = StrictJson(b"k" * 32, "t")
    assert serde.loads_typed(serde.dumps_typed({"a": [1, None, "é"]})) == {"a": [1, None, "é"]}
    assert serde.loads_typed(serde.dumps_typed(ValueError("a secret"))) == "ValueError"
    with pytest.raises(TypeError, match="not JSON"):
        serde.dumps_typed({"path": Path("x")})


def test_the_key_is_readable_by_its_owner_only(scripted: Scripted, settings: Settings) -> None:
    scripted(["Hello."])[0].run("Hi.", thread_id="t")
    assert (settings.home / "threads.key").stat().st_mode & 0o777 == 0o600
    assert not list(settings.home.glob("threads.key.*"))


async def test_a_write_that_has_begun_is_ended_although_its_run_is_cancelled(tmp_path: Path) -> None:
    from langgraph.checkpoint.base import empty_checkpoint

    free = threading.Event()
    async with Threads(tmp_path).open("default", "t") as (name, saver):
        await saver.conn.create_function("hold", 0, lambda: free.wait(10))
        held = asyncio.create_task(saver.conn.execute_fetchall("SELECT hold()"))
        await asyncio.sleep(0)
        config: Any = {"configurable": {"thread_id": name, "checkpoint_ns": ""}}
        write = asyncio.create_task(saver.aput(config, empty_checkpoint(), {}, {}))
        for _ in range(5):  # until the write waits behind the statement that is held
            await asyncio.sleep(0)
        write.cancel()
        await asyncio.wait({write})
        free.set()
        await held
    assert write.cancelled()
    with closing(sqlite3.connect(tmp_path / "threads.sqlite", timeout=0)) as other:
        assert other.execute("SELECT count(*) FROM checkpoints").fetchone() == (1,)
