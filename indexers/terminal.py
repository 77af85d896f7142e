"""How reports and hits look in a terminal, and in a pipe."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from framework.documents import Hit
from framework.terminal import one_line, plain
from indexers.report import CollectionStatus, IndexReport, Progress, Quarantined, VerifyReport

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from framework.retrieval.retriever import SearchResult

SHOWN = 20
EXCERPT = 320
LINE_EVERY = 10.0  # seconds between two lines of progress in a pipe


class ProgressDisplay:
    """A bar with rate and time left on a terminal; in a pipe, a line now and then."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: Bar | None = None
        self._last = time.monotonic()

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, progress: Progress) -> None:
        if self._quiet or not progress.documents_total:
            return
        if sys.stderr.isatty():
            self._draw(progress)
        elif time.monotonic() - self._last >= LINE_EVERY:
            self._last = time.monotonic()
            click.echo(f"{progress.share:4.0%}  {_state(progress)}", err=True)

    def _draw(self, progress: Progress) -> None:
        if self._bar is None:
            self._bar = _bar()
            self._bar.add_task("Indexing", total=1.0, state="")
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=progress.share, state=_state(progress))


def _bar() -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[state]}"))
    return Bar(*columns, console=Console(stderr=True), transient=True)


def _state(progress: Progress) -> str:
    state = f"{progress.chunks} chunks of {progress.documents_total} documents, {progress.rate:.0f} chunks/s"
    return state if progress.seconds_left is None else f"{state}, {_duration(progress.seconds_left)} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02} min" if minutes else f"{rest} s"


def print_report(report: IndexReport) -> None:
    """A summary: what changed, what it cost, and what could not be taken in."""
    moved = {new for _, new in report.moved}
    counts = {
        "added": len(report.added) - len(moved),
        "changed": len(report.changed),
        "moved": len(moved),
        "deleted": len(report.deleted) - len(moved),
        "unchanged": report.unchanged,
    }
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "nothing to index"
    if report.dry_run:
        click.echo(f"{report.collection}: would be {told}. Nothing was done.")
        _print_some("would add", report.added)
        _print_some("would change", report.changed)
        _print_some("would delete", report.deleted)
    else:
        cost = f"{report.chunks} chunks written, {report.embedded} of them embedded, in {report.seconds:.1f} s"
        click.echo(f"{report.collection}: {told}; {cost}.")
    if report.skipped:
        kinds = ", ".join(f"{count} {one_line(kind)}" for kind, count in sorted(report.skipped.items()))
        click.echo(f"Skipped, of types that are not read: {kinds}.")
    if report.empty:
        click.echo(f"{len(report.empty)} without text, so no search finds them:")
        _print_some("empty", report.empty)
    _print_quarantine(report.quarantined)


def _print_some(label: str, ids: Sequence[str]) -> None:
    for id in ids[:SHOWN]:
        click.echo(f"  {label} {one_line(id)}")
    if len(ids) > SHOWN:
        click.echo(f"  {label} {len(ids) - SHOWN} more (--json lists all)")


def _print_quarantine(quarantined: Sequence[Quarantined]) -> None:
    if quarantined:
        click.echo(f"{len(quarantined)} quarantined:", err=True)
    for item in quarantined:
        stale = " An older version is still answered from." if item.stale else ""
        click.echo(f"  {one_line(item.document_id)}: {one_line(item.reason)}{stale}", err=True)


def print_status(status: CollectionStatus) -> None:
    click.echo(f"{status.name}: {status.documents} documents, {status.chunks} chunks, {status.characters} characters")
    click.echo(f"  embedder {status.embedder}, language {status.language}, chunker {status.chunker}")
    for root in status.roots:
        click.echo(f"  from {one_line(root)}")
    if status.empty:
        click.echo(f"  {status.empty} without text")
    if status.waiting:
        click.echo(f"  {status.waiting} not searchable until the next `lectern index` run")
    _print_quarantine(status.quarantined)


def print_collections(found: Sequence[CollectionStatus]) -> None:
    if not found:
        click.echo("There are no collections yet. Make one: lectern index PATH -c NAME")
    for status in found:
        note = f", {len(status.quarantined)} quarantined" if status.quarantined else ""
        click.echo(f"{status.name}: {status.documents} documents, {status.chunks} chunks, {status.embedder}{note}")


def print_verified(report: VerifyReport) -> None:
    parts = {"missing": report.missing, "left over": report.extra, "stale": report.stale, "damaged": report.damaged}
    if not any(parts.values()):
        click.echo(f"{report.collection}: store and manifest agree on {report.points} points.")
        return
    told = ", ".join(f"{len(ids)} {name}" for name, ids in parts.items() if ids)
    if report.repaired:
        click.echo(f"{report.collection}: {told}; repaired.")
    else:
        click.echo(
            f"{report.collection}: {told}. Mend it: lectern index verify -c {report.collection} --repair", err=True
        )


def print_hits(query: str, result: SearchResult) -> None:
    """Each hit with its place, its scores and an excerpt around the query's words."""
    words = re.findall(r"\w+", query)
    for rank, hit in enumerate(result.hits, 1):
        place = f"{one_line(hit.chunk.document_id)}[{hit.chunk.start}:{hit.chunk.end}]"
        page = f"  page {hit.chunk.page}" if hit.chunk.page else ""
        scores = "  ".join(f"{name} {score:.3f}" for name, score in hit.scores.items())
        click.echo(f"{rank}. {click.style(one_line(' > '.join(_headings(hit))), bold=True)}")
        click.echo(click.style(f"   {place}{page}  {scores}", dim=True))
        for line in _excerpt(plain(hit.chunk.text), words).split("\n"):
            click.echo(f"   {_highlighted(line, words)}")
        click.echo()
    for notice in result.notices:
        click.echo(notice, err=True)
    found = "1 hit" if len(result.hits) == 1 else f"{len(result.hits)} hits"
    read = f", {result.reranked} reranked" if result.reranked else ""
    click.echo(click.style(f"{found}, {result.mode}{read}, {result.seconds * 1000:.0f} ms", dim=True), err=True)


def _headings(hit: Hit) -> list[str]:
    path = list(hit.chunk.heading_path)
    title = hit.title or hit.chunk.document_id
    return path if path and path[0] == title else [title, *path]


def _excerpt(text: str, words: Sequence[str]) -> str:
    """The part of a chunk that says most of the query's words, cut at spaces."""
    text = re.sub(r"\n{2,}", "\n", text)
    if len(text) <= EXCERPT:
        return text
    places = [found.start() for word in words if len(word) > 2 for found in _word(word).finditer(text)]
    start = max(range(0, len(text) - EXCERPT + 40, 40), key=lambda s: (sum(s <= p < s + EXCERPT for p in places), -s))
    start = text.rfind(" ", 0, start) + 1 if start else 0
    end = text.rfind(" ", start, start + EXCERPT) if start + EXCERPT < len(text) else len(text)
    return f"{'… ' if start else ''}{text[start:end].strip()}{' …' if end < len(text) else ''}"


def _highlighted(line: str, words: Sequence[str]) -> str:
    long = [word for word in words if len(word) > 2]
    if not long or not sys.stdout.isatty():
        return line
    pattern = re.compile("|".join(_word(word).pattern for word in long), re.IGNORECASE)
    return pattern.sub(lambda found: click.style(found[0], fg="yellow", bold=True), line)


def _word(word: str) -> re.Pattern[str]:
    """A word and what else begins with it, less a common ending."""
    return re.compile(rf"\b{re.escape(re.sub(r'(?:ing|ed|es|s)$', '', word) or word)}\w*", re.IGNORECASE)
