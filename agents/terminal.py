"""How a run looks in a terminal: steps as they happen, the answer, its sources."""

from __future__ import annotations

import json
from collections.abc import Iterable

import click

from agents.events import Answer, AnswerDelta, Event, RunFinished, ThoughtDelta, ToolReturned
from framework.documents import Citation
from framework.terminal import one_line, plain

LONGEST_STEP = 100


def show(events: Iterable[Event], *, quiet: bool = False) -> Answer:
    """Print a run while it goes: the answer to standard output, everything else to standard error."""
    answer = None
    for event in events:
        if isinstance(event, AnswerDelta):
            click.echo(plain(event.text), nl=False)
        elif isinstance(event, RunFinished):
            answer = event.answer
            click.echo()
        elif not quiet:
            _show_step(event)
    assert answer is not None, "a run ends with RunFinished"
    return answer


def _show_step(event: Event) -> None:
    match event:
        case ToolReturned(call=call, result=result, seconds=seconds):
            found = f"{len(result.hits)} passages" if result.hits else _short(result.content)
            arrow = click.style("failed:", fg="red") if result.error else "→"
            name = click.style(plain(call.name), bold=True)
            line = f"{name} {_short(_arguments(call.arguments))} {arrow} {found} ({seconds:.2f} s)"
            click.echo(f"· {line}", err=True)
        case ThoughtDelta(text=text):
            click.secho(plain(text), err=True, dim=True)


def sources(citations: Iterable[Citation]) -> str:
    """Each citation: number, place in the document, span, and the quotation itself."""
    return "\n".join(f"[{item.number}] {_place(item)}\n    “{one_line(item.quote)}”" for item in citations)


def notes(notices: Iterable[str]) -> str:
    """Each notice on a line."""
    return "\n".join(f"Note: {plain(notice)}" for notice in notices)


def _place(item: Citation) -> str:
    headings = [part for part in item.heading_path if part != item.title]
    title = " > ".join(part for part in (item.title or item.document_id, *headings) if part)
    page = f", page {item.page}" if item.page is not None else ""
    return plain(f"{title} ({item.document_id}{page}, characters {item.start}–{item.end})")


def _arguments(text: str) -> str:
    """A call's only argument as it is, several as JSON."""
    try:
        values = json.loads(text)
    except ValueError:
        return text
    if isinstance(values, dict) and len(values) == 1:
        return json.dumps(next(iter(values.values())), ensure_ascii=False)
    return text


def _short(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= LONGEST_STEP else f"{line[: LONGEST_STEP - 1]}…"
