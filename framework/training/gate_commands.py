"""`lectern adapters publish` and `check`: what the parity gate says, and what follows from it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from framework.terminal import plain

if TYPE_CHECKING:
    from framework.training.publish import Published

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@click.argument("name")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--base", metavar="MODEL", help="The model it was trained on.  [default: what the run says]")
@click.option("--replace", "overwrite", is_flag=True, help="Give NAME new content; running requests keep the old.")
@AS_JSON
@click.pass_context
def publish(context: click.Context, name: str, folder: Path, base: str | None, overwrite: bool, as_json: bool) -> None:
    """Register what a training run made under NAME, live once it has passed the parity gate.

    FOLDER is a run's, or an adapter's. Exits with 1 when the gate fails: nothing that works is replaced then.
    """
    from framework.config import Settings
    from framework.training.publish import publish_folder

    done = publish_folder(name, folder, Settings.load(), base=base, overwrite=overwrite, say=_say)
    tell(name, done, as_json)
    context.exit(0 if done.report.passed else 1)


@click.command()
@click.argument("name")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="A run's folder, or the adapter's as its trainer saved it.  [default: the files that are served]",
)
@AS_JSON
@click.pass_context
def check(context: click.Context, name: str, against: Path | None, as_json: bool) -> None:
    """Ask the parity gate about NAME: does the engine give what PEFT gives, in every precision?

    Exits with 1 when it fails; the adapter is refused from then on.
    """
    from framework.config import Settings
    from framework.training.publish import check as ask

    done = ask(name, Settings.load(), against=against, say=_say)
    tell(name, done, as_json)
    context.exit(0 if done.report.passed else 1)


def _say(what: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"Asking {what} ...", err=True)


def tell(name: str, done: Published, as_json: bool = False) -> None:
    """Print what the gate found, and what became of the name."""
    state = done.adapter.state if done.adapter else "not registered"
    if as_json:
        click.echo(json.dumps({"name": name, "state": state, "report": json.loads(done.report.to_json())}, indent=1))
        return
    click.echo(done.report.table())
    if done.report.passed:
        click.echo(f"{name} is {state}.")
        return
    click.echo(f"The parity gate has failed. {plain(done.report.reason)}.")
    kept = done.adapter is not None and done.adapter.digest != done.report.adapter
    click.echo(f"{name} keeps its content and is {state}." if kept else f"{name} is {state}.")
