"""`lectern eval promote`, `rollback` and `history`: which content a name has, and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from framework.terminal import plain

if TYPE_CHECKING:
    from evals.contest import Compared
    from evals.promotion import Promotion

    Progress = Callable[[str, int, int], None]
    Bar = Callable[..., AbstractContextManager[Progress]]

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
BY = click.option("--by", metavar="WHO", default="", help="Who does it, for the history.  [default: the user]")


def commands(bar: Bar) -> list[click.Command]:
    """The commands; `bar` shows progress."""

    @click.command()
    @click.argument("name")
    @click.argument("challenger")
    @click.argument("task")
    @click.option("--margin", multiple=True, metavar="[METRIC=]X", help="How much worse it may be.  [default: 0.02]")
    @click.option("--better", is_flag=True, help="It must be shown to be better at something.")
    @click.option("--set", "overrides", multiple=True, metavar="TABLE.KEY=VALUE", help="Replace a key of the file.")
    @click.option("--variant", metavar="NAME", help="Which variant of the task, if it has several.")
    @click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N questions.")
    @click.option("--fresh", is_flag=True, help="Run questions again that an earlier run has done.")
    @BY
    @AS_JSON
    @click.pass_context
    def promote(
        context: click.Context, name: str, challenger: str, task: str, margin: Sequence[str], better: bool,
        overrides: Sequence[str], variant: str | None, limit: int | None, fresh: bool, by: str, as_json: bool,
    ) -> None:  # fmt: skip
        """Let the adapter CHALLENGER contest NAME on TASK; if it wins, NAME gets its content.

        Both answer the same questions. CHALLENGER wins if it meets the task's thresholds and the whole 95% interval of
        its paired difference lies above the margin, for each metric that a threshold names. Exits with 1 when it is
        refused. NAME may be new. Models that are no adapters are compared, and nothing is switched.
        """
        from evals.promotion import promote as run
        from framework.bridge import run_sync
        from framework.config import Settings

        chosen = _task(task, overrides, variant)
        with bar(chosen.name, quiet=as_json) as progress:
            done = run_sync(
                run(
                    name, challenger, chosen, Settings.load(), rule=_rule(margin, better), by=by, limit=limit,
                    fresh=fresh, progress=progress,
                )
            )  # fmt: skip
        _print(done, as_json)
        context.exit(0 if done.contest.promote else 1)

    return [promote, rollback, history]


@click.command()
@click.argument("name")
@click.option("--reason", default="", help="Why, for the history.")
@BY
@AS_JSON
def rollback(name: str, reason: str, by: str, as_json: bool) -> None:
    """Give NAME back what it held before its last promotion; again goes back one further."""
    from evals.promotion import rollback as run
    from framework.config import Settings

    made = run(name, Settings.load(), by=by, reason=reason)
    if as_json:
        click.echo(json.dumps({"name": made.name, "digest": made.digest, "state": made.state}))
    else:
        click.echo(f"{made.name} has the content {made.digest[:12]} again.")


@click.command()
@click.argument("name")
@AS_JSON
def history(name: str, as_json: bool) -> None:
    """Show every promotion, refusal and rollback of NAME, the oldest first."""
    from evals.promotion import history as read
    from framework.config import Settings

    entries = read(name, Settings.load())
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in entries], indent=1, ensure_ascii=False, default=str))
    elif not entries:
        click.echo(f"Nothing has been promoted under {plain(name)}.")
    for entry in entries if not as_json else ():
        click.echo(plain(_line(entry.action, entry.outcome, entry.facts)))


def _line(action: str, outcome: str, facts: Mapping[str, Any]) -> str:
    if action == "rollback":
        what = f"rollback to {str(facts.get('to', ''))[:12]}"
    else:
        what = f"{facts['challenger']['model']} on {facts['suite']['name']}"
    done = {"done": "rolled back" if action == "rollback" else "promoted"}.get(outcome, outcome)
    why = facts.get("problem") or facts.get("reason") or ""
    return f"{facts['at'][:19]}Z  {facts.get('by', '')}  {done}: {what}{f' ({why})' if why else ''}"


def _task(place: str, overrides: Sequence[str], variant: str | None) -> Any:
    from evals.task import load_tasks
    from framework.errors import ConfigError

    tasks = load_tasks(place, overrides, [variant] if variant else ())
    if len(tasks) != 1:
        names = ", ".join(task.variant for task in tasks)
        raise ConfigError(f"{place} has the variants {names}.", hint="Choose one with --variant.", field="--variant")
    return tasks[0]


def _rule(texts: Sequence[str], better: bool) -> Any:
    from evals.contest import MARGIN, Rule
    from framework.errors import ConfigError

    margin, margins = MARGIN, {}
    for text in texts:
        metric, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise ConfigError(f"--margin {text!r} is no margin.", hint="Write 0.02 or f1=0.02.", field="--margin")
        if metric:
            margins[metric] = value
        else:
            margin = value
    return Rule(margin, margins, better)


def _print(done: Promotion, as_json: bool) -> None:
    contest = done.contest
    if as_json:
        values = {"id": done.id, "name": done.name, "switched": done.switched, **asdict(contest)}
        click.echo(json.dumps(values, ensure_ascii=False))
        return
    for row in _rows(contest.compared):
        click.echo(row)
    if done.switched:
        click.echo(f"PROMOTED {plain(done.name)}: {contest.reason}")
    elif contest.promote:
        click.echo(f"PASS: {contest.reason}. {plain(done.name)} is no adapter, so nothing was switched.")
    else:
        click.echo(f"REFUSED: {contest.reason}. {plain(done.name)} is as it was.")


def _rows(compared: Sequence[Compared]) -> list[str]:
    heads = ("metric", "champion", "challenger", "difference", "95% interval", "n", "margin", "")
    rows = [heads]
    for one in compared:
        d = one.difference
        shown = (f"{d.mean:+.4f}", f"[{d.low:+.4f}, {d.high:+.4f}]", str(d.n)) if d else ("-", "-", "-")
        champion = f"{one.champion.mean:.4f}" if one.champion else "-"
        rows.append((one.metric, champion, f"{one.challenger.mean:.4f}", *shown, f"{one.margin:g}", one.outcome))
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
