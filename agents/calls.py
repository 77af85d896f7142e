"""A model's calls: which are made, which are refused, and what their results become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agents.deps import Deps
from agents.events import StopReason
from agents.limits import Budget, identity
from agents.state import Asked, Passage, Returned, Run
from framework.documents import Hit
from framework.messages import Message, ToolCall
from tools.builtin.retrieve import passage as passage_text
from tools.redaction import redact

REPEATED = "This call was made before and is not made again; its result stands above. Answer from what is known."
NO_CALLS_LEFT = "All {limit} tool calls of this run are used up; this one was not made. Answer from what is known."


def ask_for(run: Run, message: Message, budget: Budget) -> Run:
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


def take_in(run: Run, call: ToolCall, result: Returned, deps: Deps) -> tuple[Run, str]:
    """The run with a result's passages, finding or failure, and the text that the model reads."""
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
