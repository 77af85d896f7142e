"""A reading agent's own node: read the passages one by one, and answer with the best answer and where it stands."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from agents.citations import citation
from agents.deps import Deps
from agents.events import AnswerDelta
from agents.finish import DECLINED
from agents.quoted import best_first, embedder_of, to_other_tools
from agents.reading import Part, Read, Reading, in_a_sentence, part_size, parts
from agents.reading import read as read_parts
from agents.state import Json, Run, State, dump, load, messages
from framework.documents import Citation
from framework.messages import Message, Usage
from framework.models.base import ChatModel
from framework.prompts.reading import UNANSWERABLE, Style

if TYPE_CHECKING:
    from langgraph.runtime import Runtime

MOST_BEFORE = 400  # characters of an earlier question or answer: it says what a question is about, and no more
NO_TIME = "There was no time left to answer in a sentence."
NO_STEP = "The limit of {limit} left no room to answer in a sentence."


async def read(state: State, runtime: Runtime[Deps]) -> Json:
    """Answer from one passage, or find that none of them answers."""
    run, deps = load(Run, state["run"]), runtime.context
    model = await deps.reader()
    before = earlier(run, messages(state.get("turns", [])))
    run, affordable = _affordable(run, before, model, deps)
    if run.stop or not affordable:
        return {"run": dump(run if run.stop else await to_other_tools(run, deps))}
    try:
        async with asyncio.timeout(max(0.0, deps.time_left())):
            embedder = await asyncio.to_thread(embedder_of, run.passages, deps)
            most = deps.budget.turn_tokens
            reading = await read_parts(run.question, affordable, model, embedder, deps.reading, before, most)
    except TimeoutError:
        spent = sum(part_size(run.question, part, model, before) for part in affordable)
        return {"run": dump(replace(run, stop="seconds", usage=run.usage + Usage(spent, 0)))}
    run = replace(run, steps=run.steps + 1, usage=run.usage + reading.usage)
    run, best, source = await _supported(run, reading, deps)
    if best is None or source is None:
        return {"run": dump(await to_other_tools(run, deps))}
    run, text = await _said(run, best, before, model, deps)
    run = replace(run, text=f"{text} [{source.number}]", citations=(source,), stop="answered")
    runtime.stream_writer(AnswerDelta(run.text))
    return {"run": dump(run)}


def earlier(run: Run, turns: Sequence[Message]) -> tuple[str, str] | None:
    """The question and answer that this question continues; None if it stands for itself."""
    if run.query == run.question:
        return None
    asked = next((place for place in reversed(range(len(turns))) if turns[place].role == "user"), None)
    if asked is None:
        return None
    said = [turn.content for turn in turns[asked + 1 :] if turn.role == "assistant" and turn.content]
    answer = said[-1] if said and said[-1] != DECLINED else UNANSWERABLE
    return turns[asked].content[:MOST_BEFORE], answer[:MOST_BEFORE]


def _affordable(run: Run, before: tuple[str, str] | None, model: ChatModel, deps: Deps) -> tuple[Run, list[Part]]:
    """As many parts as the budget has tokens for, and a notice if that is not all of them."""
    hits = [passage.hit for passage in best_first(run.passages)]
    found = parts(run.question, hits, model, deps.reading, before)
    left = deps.budget.tokens - run.usage.total_tokens
    times = 2 if deps.reading.doubt < 0 else 1  # in doubt a part is asked again
    taken: list[Part] = []
    for part in found:
        left -= times * part_size(run.question, part, model, before)
        if left < 0:
            break
        taken.append(part)
    if found and (run.steps >= deps.budget.steps or deps.time_left() <= 0):
        return replace(run, stop="steps" if run.steps >= deps.budget.steps else "seconds"), []
    if found and not taken:
        return replace(run, stop="tokens"), []
    if len(taken) < len(found):
        limit = f"{deps.budget.tokens} tokens"
        run = run.noting(f"{len(found) - len(taken)} of {len(found)} passages were not read: the limit of {limit}.")
    return run, taken


async def _supported(run: Run, reading: Reading, deps: Deps) -> tuple[Run, Read | None, Citation | None]:
    """The best answer whose passage still stands in its document, with its citation."""
    by_hit = {passage.hit.id: passage for passage in run.passages}
    for each in reading.reads:
        passage = by_hit[each.part.hit.id]
        found = await citation(1, passage, each.span, deps.shelves)
        if found is not None:
            return run, each, found
        run = run.noting(f"An answer was left out: {passage.hit.chunk.document_id} has changed since it was read.")
    return run, None, None


async def _said(run: Run, best: Read, before: tuple[str, str] | None, model: ChatModel, deps: Deps) -> tuple[Run, str]:
    """The answer as it is given; the short one where a limit leaves no room for a sentence."""
    if deps.reading.answers == "brief" or (deps.reading.answers == "auto" and best.stands_alone):
        return run, best.text
    spent = deps.spent(run, part_size(run.question, best.part, model, before, Style.SENTENCE))
    if spent:
        return run.noting(NO_STEP.format(limit=spent)), best.text
    try:
        async with asyncio.timeout(max(0.0, deps.time_left())):
            text, usage = await in_a_sentence(run.question, best, model, before, deps.budget.turn_tokens)
    except TimeoutError:
        return run.noting(NO_TIME), best.text
    return replace(run, steps=run.steps + 1, usage=run.usage + usage), text
