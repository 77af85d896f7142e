"""`lectern eval`: run tasks, compare runs, list what ships; `promotion_commands.py` has the rest."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from evals.promotion_commands import commands

if TYPE_CHECKING:
    from rich.console import Console

    from evals.runner import Run

    Progress = Callable[[str, int, int], None]


SHOWN_NOTICES = 5


@click.group(name="eval", context_settings={"help_option_names": ["-h", "--help"]})
def evaluate() -> None:
    """Measure retrieval and answers, with gates for CI."""


@evaluate.command()
@click.argument("task")
@click.option("--set", "overrides", multiple=True, metavar="TABLE.KEY=VALUE", help="Replace a key of the file.")
@click.option("--variant", "variants", multiple=True, metavar="NAME", help="Run only this variant; may be repeated.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N questions.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for the log.")
@click.option("--fresh", is_flag=True, help="Run questions again that an earlier run has done.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in place of the table.")
@click.pass_context
def run(
    context: click.Context,
    task: str,
    overrides: Sequence[str],
    variants: Sequence[str],
    limit: int | None,
    out: Path | None,
    fresh: bool,
    as_json: bool,
) -> None:
    """Run TASK: a TOML file, or the name of a suite that ships.

    A run that was interrupted is continued. Exits with 1 when a threshold fails.
    """
    from evals.runner import run_task
    from evals.task import load_tasks
    from framework.bridge import run_sync
    from framework.config import Settings

    tasks, settings, runs = load_tasks(task, overrides, variants), Settings.load(), []
    for each in tasks:
        folder = out / each.variant if out and each.variant else out
        with _progress(each.name, quiet=as_json) as progress:
            runs.append(run_sync(run_task(each, settings, limit=limit, folder=folder, fresh=fresh, progress=progress)))
    if as_json:
        click.echo(json.dumps(_as_json(runs), ensure_ascii=False))
    else:
        _print_runs(runs)
    context.exit(0 if all(each.passed for each in runs) else 1)


@evaluate.command()
@click.argument("run_a", type=click.Path(path_type=Path))
@click.argument("run_b", type=click.Path(path_type=Path))
@click.option("--seed", type=int, default=0, show_default=True, help="Of the bootstrap.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in place of the table.")
def compare(run_a: Path, run_b: Path, seed: int, as_json: bool) -> None:
    """Compare two runs of the same questions: the paired difference of each metric, with its interval."""
    from evals.report import difference_table, paired
    from evals.run_log import read_records, read_run
    from framework.errors import CallerError

    a, b, about_a, about_b = read_records(run_a), read_records(run_b), read_run(run_a), read_run(run_b)
    names = [name for name in about_a.get("metrics", {}) if name in about_b.get("metrics", {})]
    errors = about_a.get("config", {}).get("run", {}).get("errors", "zero")
    found = (paired(a, b, name, errors=errors, seed=seed) for name in names)
    differences = [difference for difference in found if difference is not None]
    if not differences:
        raise CallerError(
            f"{run_a} and {run_b} share no scored question.", hint="Compare finished runs of one data set."
        )
    if as_json:
        click.echo(json.dumps({"a": str(run_a), "b": str(run_b), "differences": [asdict(d) for d in differences]}))
        return
    _console().print(difference_table(str(run_a), str(run_b), differences))
    left_out = len(a.keys() ^ b.keys())
    if left_out:
        click.echo(f"{left_out} questions stand in one run only and are left out.")
    if about_a.get("data") != about_b.get("data"):
        click.echo("The two runs used different data; only questions with the same id are compared.")


@evaluate.command(name="list")
def list_suites() -> None:
    """List the suites that ship, and the metrics."""
    import tomllib

    from rich.table import Table

    from evals.metrics import METRICS
    from evals.task import suites

    table = Table(title="Suites", title_justify="left")
    for heading in ("name", "variants", "what it measures"):
        table.add_column(heading)
    for name, path in suites().items():
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        table.add_row(name, " ".join(values.get("variants", {})), values["task"].get("description", ""))
    _console().print(table)
    table = Table(title="Metrics", title_justify="left")
    for heading in ("name", "better", "what it says"):
        table.add_column(heading)
    for name in METRICS:
        kind = METRICS.get(name)
        suffix = {"none": "", "optional": "[@k]", "required": "@k"}[kind.cutoff]
        table.add_row(
            f"{name}{suffix}".replace("[", r"\["), "higher" if kind.higher_is_better else "lower", kind.summary
        )
    _console().print(table)


def _print_runs(runs: Sequence[Run]) -> None:
    from evals.report import summary_table, verdict_line
    from evals.run_log import RUN

    columns = {each.task.variant: each.estimates for each in runs}
    _console().print(summary_table(runs[0].task.config.name, [m.name for m in runs[0].task.metrics], columns))
    for each in runs:
        click.echo(_account(each))
        for notice, times in list(each.notices.items())[:SHOWN_NOTICES]:
            click.echo(f"  {times} x {notice}")
        if len(each.notices) > SHOWN_NOTICES:
            click.echo(f"  and {len(each.notices) - SHOWN_NOTICES} more kinds of notices, in {each.folder / RUN}")
    for each in runs:
        for verdict in each.verdicts:
            click.echo(verdict_line(verdict, each.task.variant))


def _account(run: Run) -> str:
    """One line: how many were run, reused and failed, and where the log is."""
    parts = [f"{run.task.name}: {run.samples} questions"]
    if run.reused:
        commit = (run.earlier.get("git") or {}).get("commit", "")[:10]
        place = f" at commit {commit}" if commit else ""
        parts.append(f"{run.reused} of them run {run.earlier['started']}{place} (--fresh runs them again)")
    if run.errors:
        treated = "scored 0" if run.task.run.errors == "zero" else "left out"
        parts.append(f"{run.errors} FAILED, {treated}; first {run.first_error}")
    return f"{', '.join(parts)}. Log: {run.folder}"


def _as_json(runs: Sequence[Run]) -> dict[str, object]:
    from evals.runner import outcome_values

    values = [{"variant": each.task.variant, "folder": str(each.folder), **outcome_values(each)} for each in runs]
    return {"task": runs[0].task.config.name, "runs": values, "passed": all(each.passed for each in runs)}


@contextmanager
def _progress(name: str, *, quiet: bool) -> Iterator[Progress]:
    """A bar on standard error with rate and time left; nothing where that is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        rows: dict[str, TaskID] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in rows:
                rows[what] = bar.add_task(f"{name}: {what}", total=total, completed=done, rate="")
            speed = bar.tasks[rows[what]].speed
            bar.update(rows[what], completed=done, total=total, rate=f"{speed:.1f}/s" if speed else "")

        yield update


def _console() -> Console:
    from rich.console import Console

    return Console()


for each in commands(_progress):
    evaluate.add_command(each)
