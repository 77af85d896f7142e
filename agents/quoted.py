"""A quoting agent's own nodes: quote the passages; where none answers, let the model choose another tool and call it.

Choosing and calling are two questions, each under a grammar: a small model that is free to do either hardly ever calls.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from agents.calls import ask_for
from agents.citations import citation
from agents.deps import Deps
from agents.events import AnswerDelta, Event
from agents.prompting import assemble_messages, instructions, prompt, size_of, without_searches
from agents.quoting import quote as choose_sentences
from agents.state import Json, Passage, Run, State, dump, load
from agents.turn import Speech, take_turn
from framework.documents import Citation
from framework.messages import system, user
from framework.models.base import Choice, Embedder, ToolChoice

if TYPE_CHECKING:
    from langgraph.runtime import Runtime

NO_TOOL = "none"


async def quote(state: State, runtime: Runtime[Deps]) -> Json:
    """Answer with the passages' own sentences, or find that none of them answers."""
    run, deps = load(Run, state["run"]), runtime.context
    try:
        async with asyncio.timeout(max(0.0, deps.time_left())):
            run = await quote_passages(run, deps)
    except TimeoutError:
        return {"run": dump(replace(run, stop="seconds"))}
    if run.citations:
        runtime.stream_writer(AnswerDelta(run.text))
        return {"run": dump(replace(run, stop="answered"))}
    return {"run": dump(await to_other_tools(run, deps))}


async def to_other_tools(run: Run, deps: Deps) -> Run:
    """No passage answers: the other tools get their chance, called by the model itself where it was trained to."""
    if not deps.other_tools or run.barred:
        return replace(run, stop=run.barred or "declined")
    return replace(run, calling=await deps.caller() is not None)


async def choose(state: State, runtime: Runtime[Deps]) -> Json:
    """The model names one of the other tools, or none."""
    run, deps = load(Run, state["run"]), runtime.context
    model = await deps.model()
    names = [spec.name for spec in deps.other_tools]
    menu = "\n".join(f"- {spec.name}: {spec.description.partition(chr(10))[0]}" for spec in deps.other_tools)
    question = f"Question: {run.query or run.question}\nTool:"  # a small model answers the question without "Tool:"
    messages = [system(prompt("choose").substitute(tools=menu, none=NO_TOOL).strip()), user(question)]
    size = sum(size_of(message, model) for message in messages)
    spent = deps.spent(run, size)
    if spent:
        return {"run": dump(replace(run, stop=spent))}
    turn = await take_turn(
        model,
        messages,
        (),
        Speech(_nobody, only_thought=True),
        max_tokens=deps.room(run, size, model),
        seconds=deps.time_left(),
        constraint=Choice((*names, NO_TOOL)),
    )
    run = replace(run, steps=run.steps + 1, usage=run.usage + turn.usage)
    chosen = turn.message.content.strip()
    if turn.timed_out:
        return {"run": dump(replace(run, stop="seconds"))}
    if chosen in names:
        return {"run": dump(replace(run, chosen=chosen))}
    return {"run": dump(replace(run, stop="declined") if deps.shelves else run)}


async def call(state: State, runtime: Runtime[Deps]) -> Json:
    """The model calls the tool that it chose; after an error, again."""
    run, deps = load(Run, state["run"]), runtime.context
    model = await deps.model()
    tools = tuple(spec for spec in deps.other_tools if spec.name == run.chosen)
    head = instructions("call", deps.name, deps.instructions)
    short = replace(run, messages=tuple(without_searches(run.messages, deps.shelves)))
    messages, size, _ = assemble_messages(head, [], short, model, tools)
    spent = run.barred or deps.spent(run, size)
    if spent:
        return {"run": dump(replace(run, stop=spent))}
    turn = await take_turn(
        model,
        messages,
        tools,
        Speech(runtime.stream_writer, only_thought=True),
        max_tokens=deps.room(run, size, model),
        seconds=deps.time_left(),
        tool_choice=ToolChoice.named(run.chosen),
    )
    run = replace(run, steps=run.steps + 1, usage=run.usage + turn.usage)
    if turn.timed_out or not turn.message.tool_calls:
        return {"run": dump(replace(run, stop="seconds" if turn.timed_out else "declined"))}
    return {"run": dump(ask_for(run, turn.message, deps.budget))}


def _nobody(event: Event) -> None:
    """A choice is not told: the call that follows shows it."""


async def quote_passages(run: Run, deps: Deps) -> Run:
    """The run with text and citations, both empty where no passage answers."""
    if not run.passages:
        return run
    embedder = await asyncio.to_thread(embedder_of, run.passages, deps)
    ranked = best_first(run.passages)
    by_hit = {passage.hit.id: passage for passage in run.passages}
    model = await deps.model() if deps.quoting.choice else None
    hits = [passage.hit for passage in ranked]
    quotation = await choose_sentences(run.query or run.question, hits, embedder, model, deps.quoting)
    lines: list[str] = []
    citations: list[Citation] = []
    for sentence in quotation.sentences:
        passage = by_hit[sentence.hit.id]
        start = passage.hit.chunk.start
        span = (sentence.start - start, sentence.end - start)
        found = await citation(len(citations) + 1, passage, span, deps.shelves)
        if found is None:
            run = run.noting(f"A sentence was left out: {passage.hit.chunk.document_id} has changed since it was read.")
            continue
        lines.append(f"{' '.join(found.quote.split())} [{found.number}]")
        citations.append(found)
    return replace(run, text="\n".join(lines), citations=tuple(citations))


def best_first(passages: tuple[Passage, ...]) -> list[Passage]:
    """Each search's passages in its order, the searches taking turns: their scores can't be compared."""
    ranks: Counter[str] = Counter()
    ranked = []
    for passage in passages:
        ranks[passage.tool] += 1
        ranked.append((ranks[passage.tool], passage.number, passage))
    return [passage for _, _, passage in sorted(ranked, key=lambda item: item[:2])]


def embedder_of(passages: Sequence[Passage], deps: Deps) -> Embedder:
    """The one that the collection was made with, or the default for a search of another kind."""
    shelf = deps.shelves.get(passages[0].tool)
    own = shelf.embedder() if shelf is not None else None
    if own is not None:
        return own
    from framework.models.embedders import load_embedder

    return load_embedder()
