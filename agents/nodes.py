"""The graph's nodes: each reads the run, does one thing, and returns what changed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agents.calls import ask_for, take_in
from agents.citations import Checker, MarkerStream
from agents.deps import Deps
from agents.events import Answer, AnswerDelta, RunFinished, ToolCalled, ToolReturned
from agents.finish import DECLINED, conclude
from agents.prompting import assemble_messages, bounded, instructions, remembered, search_query, without_searches
from agents.seen import RECENT, Seen, frame_of
from agents.state import Job, Json, Returned, Run, State, dump, load, messages
from agents.turn import Speech, Turn, take_turn
from framework.messages import Message, ToolCall, ToolSpec, canonical_json
from framework.models.base import AUTO, REQUIRED, ChatModel, Regex
from framework.prompts.tool_formats import NO_TOOL
from tools import ToolContext

if TYPE_CHECKING:
    from langgraph.runtime import Runtime

# What a model that was trained to call writes where it may call no more: anything but the tag of a call.
WORDS = Regex(r"[^<\s](.|\n)*")


async def seek(state: State, runtime: Runtime[Deps]) -> Json:
    """The first step of an agent that searches by itself: search every collection for the question."""
    run, deps = load(Run, state["run"]), runtime.context
    query, notice = search_query(run.question, messages(state.get("turns", [])))
    calls = [ToolCall(f"seek_{n}", name, canonical_json({"query": query})) for n, name in enumerate(deps.shelves, 1)]
    run = replace(run, query=query).noting(notice)
    return {"run": dump(ask_for(run, Message("assistant", tool_calls=tuple(calls)), deps.budget))}


async def think(state: State, runtime: Runtime[Deps]) -> Json:
    """The model's turn: it calls tools, or writes the answer. With knowledge it has to search first."""
    run, deps = load(Run, state["run"]), runtime.context
    task = await _task(run, deps)
    prompt, size, notice = assemble_messages(
        task.head, messages(state.get("turns", [])), task.run, task.model, task.tools
    )
    run = run.noting(notice)
    spent = deps.spent(run, size)
    if spent:
        return {"run": dump(replace(run, stop=spent))}
    checker = Checker({passage.number: passage for passage in run.passages}, deps.shelves)
    markers = MarkerStream(checker) if task.cites else None
    unsaid = DECLINED if task.cites else task.unsaid
    turn = await take_turn(
        task.model,
        prompt,
        task.tools,
        Speech(
            runtime.stream_writer,
            markers,
            calls_possible=bool(task.tools),
            only_thought=run.calling and not run.findings,  # nothing that was found or returned would support it
            unsaid=unsaid,
        ),
        max_tokens=deps.room(run, size, task.model),
        seconds=deps.time_left(),
        tool_choice=REQUIRED if task.tools and task.cites and run.steps == 0 else AUTO,
        constraint=WORDS if task.unsaid and not task.tools else None,
    )
    run = run.noting(*checker.notices)
    run = replace(run, steps=run.steps + 1, usage=run.usage + turn.usage, text=run.text + turn.shown)
    if turn.timed_out:
        run = replace(run, stop="seconds")
    elif turn.message.tool_calls and task.tools:
        run = ask_for(run, turn.message, deps.budget)
    elif turn.message.tool_calls:  # the last turn offered no tools, and the model calls one all the same
        run = replace(run, stop=run.barred or "steps")
    elif not run.text and (_says(turn, unsaid) or (run.calling and not run.findings)):
        run = replace(run, stop=run.barred or "declined")
    else:
        run = replace(run, stop=run.barred or ("tokens" if turn.cut else "answered"))
    return {"run": dump(run)}


def _says(turn: Turn, words: str) -> bool:
    return bool(words) and turn.message.content.strip() == words


@dataclass(frozen=True, slots=True)
class _Task:
    """What the model is asked with.

    Attributes:
        run: with those of its messages that the model gets to see.
        cites: the answer comes from passages, and marks them.
        unsaid: the words with which a model that was trained to call tools declines; empty for any other.
    """

    model: ChatModel
    head: Message
    tools: Sequence[ToolSpec]
    run: Run
    cites: bool
    unsaid: str


async def _task(run: Run, deps: Deps) -> _Task:
    """A model with an adapter for calling tools gets it wherever there are no passages to write from."""
    cites = bool(deps.shelves) and not run.calling
    caller = None if cites else await deps.caller()
    last = run.steps + 1 >= deps.budget.steps > 1
    led = caller is None and await deps.guided() and (run.steps > 0 or bool(run.passages))  # its calls were made for it
    offered = deps.other_tools if run.calling else deps.executor.toolset.specs
    return _Task(
        caller or await deps.model(),
        instructions("write" if cites else "plain", deps.name, deps.instructions),
        () if run.barred or last or led else offered,
        replace(run, messages=tuple(without_searches(run.messages, deps.shelves))) if run.calling else run,
        cites,
        NO_TOOL if caller is not None else "",
    )


async def act(state: Job, runtime: Runtime[Deps]) -> Json:
    """One call. Those of one step run side by side, each in its own task, and each result is stored as it comes."""
    deps, call = runtime.context, load(ToolCall, state["call"])
    runtime.stream_writer(ToolCalled(call, state["step"]))
    started = time.monotonic()
    context = ToolContext(tenant=deps.tenant, run_id=state["run_id"], deadline=deps.deadline)
    result = await deps.executor.run(call, context)
    runtime.stream_writer(ToolReturned(call, result, time.monotonic() - started))
    notices = tuple(str(notice) for notice in result.data.get("notices", ()))
    returned = Returned(state["place"], result.content, result.hits, result.error, result.truncated, notices)
    return {"results": [dump(returned)]}


async def observe(state: State, runtime: Runtime[Deps]) -> Json:
    """The step's results, in the order of their calls, become messages; hits become numbered passages."""
    run, deps = load(Run, state["run"]), runtime.context
    results = {item.place: item for item in (load(Returned, data) for data in state.get("results", []))}
    for place, asked in enumerate(run.asked):
        if asked.refusal:
            content = asked.refusal
        else:
            run, content = take_in(run, asked.call, results[place], deps)
        message = Message("tool", content, tool_call_id=asked.call.id, name=asked.call.name)
        run = replace(run, messages=(*run.messages, message))
    run = replace(run, asked=())
    if run.chosen and run.findings:
        run = replace(run, stop="answered")
    elif deps.time_left() <= 0:
        run = replace(run, stop="seconds")
    return {"run": dump(run), "results": None}


async def answer(state: State, runtime: Runtime[Deps]) -> Json:
    """The end: what is still to be said, the checked citations, and the thread's memory of this run."""
    run, deps = load(Run, state["run"]), runtime.context
    stop = run.stop
    assert stop is not None, "a run is answered when something has ended it"
    run, rest = await conclude(run, deps)
    if rest:
        runtime.stream_writer(AnswerDelta(rest))
    before = messages(state.get("turns", []))
    turns, notice = bounded([*before, *remembered(run, run.text + rest, deps.shelves)])
    run = run.noting(notice, *await deps.remarks(run))
    final = Answer(
        text=run.text + rest,
        citations=run.citations,
        supported=bool(run.citations),
        stop=stop,
        usage=run.usage,
        steps=run.steps,
        tool_calls=run.tool_calls,
        notices=run.notices,
        thread_id=deps.thread_id,
        run_id=run.id,
    )
    seen = Seen(replace(run, answer=final), await frame_of(run, before, deps))
    RECENT.keep(deps.tenant, seen)
    runtime.stream_writer(RunFinished(final))
    return {"run": dump(seen.run), "frame": dump(seen.frame), "turns": [dump(turn) for turn in turns]}
