"""The ReAct loop as a graph: think, act, observe, until there is an answer.

    START ─▶ think ─▶ act (one task a call) ─▶ observe ─▶ think ... ─▶ answer
    START ─▶ seek ─▶ act ─▶ observe ─▶ quote ─▶ answer           (a quoting agent searches first)
                                         └─▶ think ...           (no passage answers, and it has other tools)

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
from agents.nodes import act, answer, observe, quote, seek, think
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
    graph.add_node("quote", quote)
    graph.add_node("answer", answer)
    graph.add_conditional_edges(START, first, ["seek", "think"])
    graph.add_conditional_edges("seek", calls, ["act", "observe", "answer"])
    graph.add_conditional_edges("think", calls, ["act", "observe", "answer"])
    graph.add_edge("act", "observe")
    graph.add_conditional_edges("observe", after_results, ["think", "quote", "answer"])
    graph.add_conditional_edges("quote", think_or_answer, ["think", "answer"])
    graph.add_edge("answer", END)
    return graph.compile()


async def first(state: State, runtime: Runtime[Deps]) -> str:
    """A quoting agent searches by itself; any other starts with the model."""
    return "seek" if runtime.context.quotes else "think"


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
    """Quote after the first search; otherwise the model thinks again, unless the run is over."""
    run = load(Run, state["run"])
    if run.stop:
        return "answer"
    return "quote" if runtime.context.quotes and run.steps == 0 else "think"


async def think_or_answer(state: State) -> str:
    """The model's other tools get their chance where no passage answers."""
    return "answer" if load(Run, state["run"]).stop else "think"
