"""How a run ends: the last words of an answer, whatever ended it."""

from __future__ import annotations

from dataclasses import replace

from agents.citations import best_sentence, citation, cite
from agents.deps import Deps
from agents.events import StopReason
from agents.limits import Budget
from agents.state import Passage, Run
from framework.documents import Citation
from framework.prompts.tool_formats import NO_TOOL

DECLINED = "I found no passage that answers this."
UNSUPPORTED = "No passage of the documents that were searched supports this answer."
UNQUOTED = "No passage answers this; the answer is what a tool returned."
SILENT = "The model gave no answer."
SHOWN = 3
LONGEST_FINDING = 500


async def conclude(run: Run, deps: Deps) -> tuple[Run, str]:
    """The run with its citations and notices, and the text that is still to be said."""
    if run.stop == "answered" and run.citations:
        return run, ""
    if run.chosen and run.findings and run.stop == "answered":
        return run.noting(UNQUOTED if deps.shelves else ""), f"According to the tool {run.findings[-1]}"
    if run.stop == "declined":
        declined = DECLINED if deps.shelves else NO_TOOL
        return run, f"I could not search. {run.failure}" if run.failure and not run.passages else declined
    if run.stop != "answered" and not run.text:
        return await _stopped_early(run, deps)
    if run.calling and run.stop in ("answered", run.barred):
        return run.noting(UNQUOTED), "" if run.text.strip() else f"According to the tool {run.findings[-1]}"
    if deps.shelves and not run.calling:
        run = replace(run, citations=await cite(run.text, run.passages, deps.shelves))
    if run.stop not in ("answered", run.barred):
        return run, f"\n\n({_sentence(run.stop, deps.budget)})"
    if not run.text.strip():
        return run.noting(SILENT), SILENT
    if deps.shelves and not run.citations:
        return run.noting(UNSUPPORTED), f"\n\n{UNSUPPORTED}"
    return run, ""


async def _stopped_early(run: Run, deps: Deps) -> tuple[Run, str]:
    """No answer was begun: say why, and what is known."""
    reason = _sentence(run.stop, deps.budget)
    lines, citations = [], []
    for passage in run.passages[:SHOWN]:
        found = await _gist(passage, run.query or run.question, deps)
        if found is not None:
            lines.append(f"- {' '.join(found.quote.split())} [{found.number}]")
            citations.append(found)
    lines += [f"- {finding[:LONGEST_FINDING]}" for finding in run.findings[-SHOWN:]]
    text = "\n".join([f"{reason} What was found so far:", *lines]) if lines else reason
    return replace(run, citations=tuple(citations)).noting(reason), text


async def _gist(passage: Passage, question: str, deps: Deps) -> Citation | None:
    return await citation(passage.number, passage, best_sentence(question, passage.hit.chunk.text), deps.shelves)


def _sentence(stop: StopReason | None, budget: Budget) -> str:
    match stop:
        case "steps":
            return f"I stopped before I had an answer: the limit of {budget.steps} steps was reached."
        case "tool_calls":
            return f"I stopped before I had an answer: the limit of {budget.tool_calls} tool calls was reached."
        case "tokens":
            limits = f"{budget.tokens} tokens, {budget.turn_tokens} of them in one turn,"
            return f"I stopped before I had an answer: the limit of {limits} was reached."
        case "seconds":
            return f"I stopped before I had an answer: the limit of {budget.seconds:g} seconds was reached."
        case "repeated_call":
            return "I stopped before I had an answer: the same tool call was asked for again and again."
    return "I stopped before I had an answer."
