"""The ReAct loop as a graph: think, act, observe, until there is an answer.

    START ─▶ think ─▶ act (one task a call) ─▶ observe ─▶ think ... ─▶ answer

An agent that reads or quotes searches by itself, and turns to other tools where no passage answers:

    START ─▶ seek ─▶ act ─▶ observe ─▶ read | quote ─▶ answer
                                         └─▶ think ─▶ act ─▶ observe ─▶ think ... ─▶ answer

A model that is too small to call tools by itself (`ChatModel.guided`), and that no adapter has taught it, is led:
`choose` and `call` take the place of `think`, and in write mode the search is made for it too.

After each step the state is stored, so that a run that was killed goes on with the step that it was in.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from langgraph.types import Send

from agents.deps import Deps
from agents.nodes import act, answer, observe, seek, think
from agents.quoted import call, choose, quote
from agents.reader import read
from agents.state import Job, Run, State, dump, load

Graph = CompiledStateGraph[State, Deps, Any, Any]


@cache
def react() -> Graph:
    """The graph, without a place to store its state; `Graph.copy` adds one.

    The functions that choose an edge are asynchronous because langgraph runs any other in a worker thread.
    """
    graph = StateGraph(State, context_schema=Deps)
    graph.add_node("seek", seek)
    graph.add_node("think", think)
    graph.add_node("act", act, input_schema=Job)
    graph.add_node("observe", observe)
    graph.add_node("read", read)
    graph.add_node("quote", quote)
    graph.add_node("choose", choose)
    graph.add_node("call", call)
    graph.add_node("answer", answer)
    graph.add_conditional_edges(START, first, ["seek", "think", "choose"])
    for asking in ("seek", "think", "call"):
        graph.add_conditional_edges(asking, calls, ["act", "observe", "answer"])
    graph.add_edge("act", "observe")
    graph.add_conditional_edges("observe", after_results, ["think", "read", "quote", "call", "answer"])
    for answering in ("read", "quote"):
        graph.add_conditional_edges(answering, tools_or_answer, ["think", "choose", "answer"])
    graph.add_conditional_edges("choose", call_or_answer, ["call", "think", "answer"])
    graph.add_edge("answer", END)
    return graph.compile()


async def first(state: State, runtime: Runtime[Deps]) -> str:
    """One that reads or quotes searches by itself; any other starts with the model, unless that has to be led."""
    deps = runtime.context
    if await deps.manner() != "write":
        return "seek"
    if not deps.executor.toolset.specs or not await deps.guided():
        return "think"
    if deps.shelves:
        return "seek"
    return "think" if await deps.caller() else "choose"


async def calls(state: State) -> list[Send] | str:
    """Each call as a task of its own; straight on where there is none to make."""
    run = load(Run, state["run"])
    if run.stop:
        return "answer"
    jobs = [
        Send("act", Job(call=dump(asked.call), place=place, step=run.steps, run_id=run.id))
        for place, asked in enumerate(run.asked)
        if not asked.refusal
    ]
    return jobs or "observe"


async def after_results(state: State, runtime: Runtime[Deps]) -> str:
    """On with what asked for the results, unless the run is over."""
    run = load(Run, state["run"])
    if run.stop:
        return "answer"
    if run.chosen:
        return "call"
    manner = "write" if run.calling else await runtime.context.manner()
    return "think" if manner == "write" else manner


async def tools_or_answer(state: State) -> str:
    """Other tools get their chance where no passage answers."""
    run = load(Run, state["run"])
    if run.stop:
        return "answer"
    return "think" if run.calling else "choose"


async def call_or_answer(state: State) -> str:
    """The chosen tool is called; with none chosen, and nothing to search, the model answers by itself."""
    run = load(Run, state["run"])
    if run.stop:
        return "answer"
    return "call" if run.chosen else "think"
