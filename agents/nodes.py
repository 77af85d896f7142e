"""The graph's nodes: each reads the run, does one thing, and returns what changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from agents.citations import Checker, MarkerStream
from agents.deps import Deps
from agents.events import Answer, AnswerDelta, RunFinished, StopReason, ToolCalled, ToolReturned
from agents.finish import conclude
from agents.limits import Budget, identity
from agents.prompting import assemble_messages, bounded, instructions, remembered, search_query
from agents.state import Asked, Job, Json, Passage, Returned, Run, State, dump, load, messages
from agents.turn import Speech, Turn, take_turn
from framework.documents import Hit
from framework.messages import Message, ToolCall, canonical_json
from tools import ToolContext
from tools.builtin.retrieve import passage as passage_text
from tools.redaction import redact

if TYPE_CHECKING:
    from langgraph.runtime import Runtime

REPEATED = "This call was made before and is not made again; its result stands above. Answer from what is known."
NO_CALLS_LEFT = "All {limit} tool calls of this run are used up; this one was not made. Answer from what is known."


async def seek(state: State, runtime: Runtime[Deps]) -> Json:
    """A quoting agent's own first step: search every collection for the question."""
    run, deps = load(Run, state["run"]), runtime.context
    query, notice = search_query(run.question, messages(state.get("turns", [])))
    calls = [ToolCall(f"seek_{n}", name, canonical_json({"query": query})) for n, name in enumerate(deps.shelves, 1)]
    run = replace(run, query=query).noting(notice)
    return {"run": dump(_ask(run, Message("assistant", tool_calls=tuple(calls)), deps.budget))}


async def think(state: State, runtime: Runtime[Deps]) -> Json:
    """The model's turn: it calls tools, or writes the answer."""
    run, deps = load(Run, state["run"]), runtime.context
    model = await deps.model()
    tools = () if run.barred or run.steps + 1 >= deps.budget.steps > 1 else deps.offered
    head = instructions(deps.prompt, deps.name, deps.instructions)
    prompt, size, notice = assemble_messages(head, messages(state.get("turns", [])), run, model, tools)
    run = run.noting(notice)
    tokens = deps.budget.tokens - run.usage.total_tokens - size
    spent = _spent(run, deps, tokens)
    if spent:
        return {"run": dump(replace(run, stop=spent))}
    checker = Checker({passage.number: passage for passage in run.passages}, deps.shelves)
    markers = MarkerStream(checker) if deps.shelves else None
    speech = Speech(runtime.stream_writer, markers, calls_possible=bool(tools), only_thought=deps.quotes)
    limit = max(1, min(tokens, model.context_length - size))
    turn = await take_turn(model, prompt, tools, speech, max_tokens=limit, seconds=deps.time_left())
    run = run.noting(*checker.notices)
    run = replace(run, steps=run.steps + 1, usage=run.usage + turn.usage, text=run.text + turn.shown)
    return {"run": dump(_after(run, turn, deps, may_call=bool(tools)))}


def _spent(run: Run, deps: Deps, tokens: int) -> StopReason | None:
    """The limit that leaves no room for another turn."""
    if run.steps >= deps.budget.steps:
        return "steps"
    if tokens < 1:
        return "tokens"
    return "seconds" if deps.time_left() <= 0 else None


def _after(run: Run, turn: Turn, deps: Deps, *, may_call: bool) -> Run:
    """The run after a turn: asking for calls, or at its end."""
    if turn.timed_out:
        return replace(run, stop="seconds")
    if turn.message.tool_calls and may_call:
        return _ask(run, turn.message, deps.budget)
    if turn.message.tool_calls:  # the last turn offered no tools, and the model calls one all the same
        return replace(run, stop=run.barred or "steps")
    if deps.quotes:
        return replace(run, stop=run.barred or "declined")
    return replace(run, stop=run.barred or ("tokens" if turn.cut else "answered"))


def _ask(run: Run, message: Message, budget: Budget) -> Run:
    """Take up a message's calls, refusing those that were made before or that the budget no longer allows."""
    asked: list[Asked] = []
    barred: StopReason | None = run.barred
    made, new = run.tool_calls, []
    for call in _with_own_ids(message.tool_calls, run):
        key = identity(call)
        if key in run.seen or key in new:
            asked.append(Asked(call, REPEATED))
            barred = "repeated_call" if key in run.seen else barred
        elif made >= budget.tool_calls:
            asked.append(Asked(call, NO_CALLS_LEFT.format(limit=budget.tool_calls)))
            barred = "tool_calls"
        else:
            asked.append(Asked(call))
            new.append(key)
            made += 1
    message = replace(message, tool_calls=tuple(item.call for item in asked))
    if run.barred is None and barred is not None:
        run = run.noting(_barred_notice(barred, budget))
    return replace(
        run,
        messages=(*run.messages, message),
        asked=tuple(asked),
        seen=(*run.seen, *new),
        tool_calls=made,
        barred=barred,
    )


def _barred_notice(barred: StopReason, budget: Budget) -> str:
    if barred == "repeated_call":
        return "The model asked for a call that it had made already; it had to answer without it."
    return f"The limit of {budget.tool_calls} tool calls was reached; further calls were refused."


def _with_own_ids(calls: Sequence[ToolCall], run: Run) -> list[ToolCall]:
    """Calls whose ids differ within the run: results and idempotency keys hang on them."""
    used = {call.id for message in run.messages for call in message.tool_calls}
    named = []
    for place, call in enumerate(calls):
        own = call if call.id and call.id not in used else replace(call, id=f"call_{run.steps}_{place}")
        used.add(own.id)
        named.append(own)
    return named


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
            run, content = _take_in(run, asked.call, results[place], deps)
        message = Message("tool", content, tool_call_id=asked.call.id, name=asked.call.name)
        run = replace(run, messages=(*run.messages, message))
    run = replace(run, asked=())
    if deps.quotes and run.findings:
        run = replace(run, stop="answered")
    elif deps.time_left() <= 0:
        run = replace(run, stop="seconds")
    return {"run": dump(run), "results": None}


def _take_in(run: Run, call: ToolCall, result: Returned, deps: Deps) -> tuple[Run, str]:
    run = run.noting(*result.notices)
    if result.truncated:
        run = run.noting(f"{result.truncated} characters of what {call.name} returned were cut.")
    if call.name not in deps.shelves:
        return (run, result.content) if result.error else (_finding(run, call, result), result.content)
    if result.error:
        failure = f"The search {call.name} failed: {result.content}"
        return replace(run, failure=failure).noting(failure), result.content
    numbers = []
    for hit in result.hits:
        run, number = _numbered(run, call.name, hit)
        numbers.append(number)
    if numbers == list(range(1, len(numbers) + 1)):
        return run, result.content
    head = result.content.partition("\n\n")[0]
    blocks = [redact(passage_text(number, hit)) for number, hit in zip(numbers, result.hits, strict=True)]
    return run, "\n\n".join([head, *blocks])[: deps.executor.max_chars]


def _finding(run: Run, call: ToolCall, result: Returned) -> Run:
    return replace(run, findings=(*run.findings, f"{call.name}: {result.content}"))


def _numbered(run: Run, tool: str, hit: Hit) -> tuple[Run, int]:
    """The passage's number in this run; one that was found before keeps the number that it has."""
    for passage in run.passages:
        if (passage.hit.id, passage.hit.version) == (hit.id, hit.version):
            return run, passage.number
    number = len(run.passages) + 1
    return replace(run, passages=(*run.passages, Passage(number, tool, hit))), number


async def quote(state: State, runtime: Runtime[Deps]) -> Json:
    """Answer with the passages' own sentences, or find that none of them answers."""
    run, deps = load(Run, state["run"]), runtime.context
    from agents.quoted import quote_passages

    try:
        async with asyncio.timeout(max(0.0, deps.time_left())):
            run = await quote_passages(run, deps)
    except TimeoutError:
        return {"run": dump(replace(run, stop="seconds"))}
    if run.citations:
        runtime.stream_writer(AnswerDelta(run.text))
        return {"run": dump(replace(run, stop="answered"))}
    return {"run": dump(run if deps.offered and not run.barred else replace(run, stop=run.barred or "declined"))}


async def answer(state: State, runtime: Runtime[Deps]) -> Json:
    """The end: what is still to be said, the checked citations, and the thread's memory of this run."""
    run, deps = load(Run, state["run"]), runtime.context
    stop = run.stop
    assert stop is not None, "a run is answered when something has ended it"
    run, rest = await conclude(run, deps)
    if rest:
        runtime.stream_writer(AnswerDelta(rest))
    turns, notice = bounded([*messages(state.get("turns", [])), *remembered(run, run.text + rest, tuple(deps.shelves))])
    run = run.noting(notice)
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
    runtime.stream_writer(RunFinished(final))
    return {"run": dump(replace(run, answer=final)), "turns": [dump(turn) for turn in turns]}
