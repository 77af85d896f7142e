"""`lectern dataset`: look at rows to train on, clean and split them, make them from feedback and from documents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from framework.training.cleaning import Leak
    from framework.training.rows import Row

FILE = click.Path(dir_okay=False, path_type=Path)
PLACE = click.Path(path_type=Path)
SHOWN = 5
licence_option = click.option("--licence", required=True, metavar="SPDX", help="Licence of the rows, as in MIT.")
out_option = click.option("-o", "--out", required=True, type=FILE, help="The file to write, .jsonl or .jsonl.gz.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace a file that is there.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def dataset() -> None:
    """Rows to train on: check, clean, split, and make them.

    Documents with questions, and toolboxes, count as the chat rows that training makes of them.
    """


@dataset.command()
@click.argument("file", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(file: Path, as_json: bool) -> int:
    """Read every row of FILE and tell what is in it.

    Exit status: 1 when its card is of another content.
    """
    from dataclasses import asdict

    from framework.training.cards import make_card, read_card
    from framework.training.data import read_any

    card, known = make_card(file, read_any(file)), read_card(file)
    stale = known is not None and known.get("sha256") != card.sha256
    if as_json:
        click.echo(json.dumps({**asdict(card), "card": None if known is None else not stale}, ensure_ascii=False))
        return int(stale)
    click.echo(f"{card.rows} {card.kind} rows from {card.documents} documents, {card.synthetic:.1%} synthetic.")
    for name, count in card.licences.items():
        click.echo(f"  {count} under {name}")
    if stale:
        click.echo("Its card is of another content: `lectern dataset card FILE --write` writes it anew.")
    return int(stale)


@dataset.command()
@click.argument("file", type=FILE)
@click.option("--write", is_flag=True, help="Write it beside the file.")
def card(file: Path, write: bool) -> None:
    """Print the card of FILE."""
    from framework.training.cards import make_card, render, write_card
    from framework.training.data import read_any

    made = make_card(file, read_any(file))
    click.echo(f"Wrote {write_card(file, made)}." if write else render(made), nl=write)


@dataset.command()
@click.argument("files", nargs=-1, required=True, type=FILE)
@out_option
@click.option(
    "--near", type=click.FloatRange(0.5, 1), default=0.8, show_default=True, help="Similarity of repetitions."
)
@click.option("--exact", is_flag=True, help="Drop equal rows only.")
@click.option("--exclude", multiple=True, type=PLACE, help="What is held out: a file or folder; repeatable.")
@overwrite_option
def clean(
    files: tuple[Path, ...], out: Path, near: float, exact: bool, exclude: tuple[Path, ...], overwrite: bool
) -> None:
    """Join FILES without repetitions, and without rows that give away what is held out."""
    from collections import Counter

    from framework.training.cleaning import deduplicate
    from framework.training.data import read_any
    from framework.training.datasets import write_rows

    _refuse_existing(out, overwrite)
    rows = [row for file in files for row in read_any(file)]
    cleaned = deduplicate(rows, None if exact else near)
    leaks = _leaks(cleaned.rows, exclude)
    leaking = {leak.place for leak in leaks}
    kept = [row for place, row in enumerate(cleaned.rows) if place not in leaking]
    reasons = Counter(f"{each.reason} to another row" for each in cleaned.repetitions)
    reasons["shares something with what is held out"] = len(leaking)
    _tell_dropped(reasons)
    click.echo(f"Wrote {write_rows(out, kept)} of {len(rows)} rows to {out}.")


@dataset.command()
@click.argument("file", type=FILE)
@click.option("-o", "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder; default: that of FILE.")
@click.option("--validation", type=click.FloatRange(0, 0.9), default=0.1, show_default=True, help="Share.")
@click.option("--test", type=click.FloatRange(0, 0.9), default=0.0, show_default=True, help="Share.")
@click.option("--seed", type=int, default=0, show_default=True)
@overwrite_option
def split(file: Path, out: Path | None, validation: float, test: float, seed: int, overwrite: bool) -> int:
    """Split FILE by document into NAME.train.jsonl, NAME.validation.jsonl and NAME.test.jsonl.

    A document stays in its split when others are added. Exit status: 1 when the splits share texts all the same.
    """
    from framework.errors import CallerError
    from framework.training.cleaning import find_leaks, split_rows
    from framework.training.data import read_any
    from framework.training.datasets import write_rows
    from framework.training.leaks import held_out_row

    shares = {name: share for name, share in (("validation", validation), ("test", test)) if share}
    splits = split_rows(read_any(file), shares, seed)
    empty = [name for name, rows in splits.items() if not rows]
    if empty:
        raise CallerError(
            f"No document of {file} falls into {' or '.join(empty)}.", hint="Take another seed or a larger share."
        )
    base = file.name.removesuffix(".gz").removesuffix(".jsonl")
    paths = {name: (out or file.parent) / f"{base}.{name}.jsonl" for name in splits}
    for path in paths.values():
        _refuse_existing(path, overwrite)
    for name, rows in splits.items():
        click.echo(f"Wrote {write_rows(paths[name], rows)} rows to {paths[name]}.")
    held = [held_out_row(row, str(paths[name])) for name, rows in splits.items() if name != "train" for row in rows]
    return _tell_leaks(find_leaks(splits["train"], held), len(splits["train"]))


@dataset.command()
@click.argument("file", type=FILE)
@click.option("--against", "held_out", multiple=True, required=True, type=PLACE, help="A file or folder; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a leak.")
def leaks(file: Path, held_out: tuple[Path, ...], as_json: bool) -> int:
    """Rows of FILE that share a document, a question or 13 words in a row with what is held out.

    Exit status: 1 when there are any.
    """
    from dataclasses import asdict

    from framework.training.data import read_any

    rows = read_any(file)
    found = _leaks(rows, held_out)
    if as_json:
        for leak in found:
            click.echo(json.dumps(asdict(leak), ensure_ascii=False))
        return int(bool(found))
    return _tell_leaks(found, len(rows))


@dataset.command(name="from-feedback")
@click.option("--chat", type=FILE, help="File for the chat rows.")
@click.option("--preference", type=FILE, help="File for the preference rows.")
@click.option(
    "--form",
    "forms",
    multiple=True,
    type=click.Choice(["agent", "reading"]),
    help="As the agent was asked, or as a reader of one passage is; default: both.",
)
@licence_option
@overwrite_option
def from_feedback(
    chat: Path | None, preference: Path | None, forms: tuple[Any, ...], licence: str, overwrite: bool
) -> None:
    """Make rows of the answers that were judged: right and corrected ones, and these against the wrong ones."""
    from agents.feedback import Feedback
    from agents.feedback_rows import FORMS, rows_from
    from framework.config import Settings
    from framework.errors import CallerError
    from framework.training.cleaning import deduplicate
    from framework.training.datasets import write_rows

    if chat is None and preference is None:
        raise CallerError("There is nothing to write.", hint="Give --chat FILE, --preference FILE or both.")
    for path in (chat, preference):
        if path is not None:
            _refuse_existing(path, overwrite)
    settings = Settings.load()
    judged = Feedback(settings.home).all(settings.core.tenant)
    made = rows_from(judged, licence, forms or FORMS)
    click.echo(f"{len(judged)} judged answers.")
    _tell_dropped(made.skipped)
    written: tuple[tuple[Path | None, Sequence[Row], str], ...] = (
        (chat, made.chat, "chat"),
        (preference, made.preference, "preference"),
    )
    for path, rows, kind in written:
        if path is None:
            continue
        unique = deduplicate(rows, near=None)
        _tell_dropped({"equal to another row": len(unique.repetitions)})
        if not unique.rows:
            raise CallerError(f"The feedback gives no {kind} row.", hint="`lectern feedback list` shows what there is.")
        click.echo(f"Wrote {write_rows(path, unique.rows)} {kind} rows to {path}.")


@dataset.command()
@click.argument("paths", nargs=-1, type=PLACE, metavar="[PATH]...")
@click.option("-c", "--collection", metavar="NAME", help="Documents of a collection, in place of files.")
@out_option
@licence_option
@click.option("-m", "--model", help="Chat model that asks and answers; a large one. Default: the configured one.")
@click.option("--by-rule", is_flag=True, help="Ask no model: gaps, headings, questions on the wrong passage.")
@click.option("--kind", type=click.Choice(["chat", "pair"]), default="chat", show_default=True)
@click.option("--traces", is_flag=True, help="Each item also as a conversation with a search call.")
@click.option("--questions", type=click.IntRange(1, 20), default=4, show_default=True, help="A passage.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only N passages, spread over the documents.")
@click.option("--concurrency", type=click.IntRange(1, 256), default=4, show_default=True, help="Passages at once.")
@click.option("--seed", type=int, default=0, show_default=True)
@overwrite_option
def generate(**options: Any) -> None:
    """Make rows from the documents at PATH or of a collection.

    What a model made is checked: the answer stands in the passage, and reading it again gives the same answer. A run
    that was killed goes on when it is started again. Everything is marked as synthetic, with the model's name.
    """
    from agents.dataset_making import Order, make

    order = Order(**options)
    _refuse_existing(order.out, order.overwrite)
    made = make(order, click.echo)
    _tell_dropped(made.dropped)
    click.echo(f"Wrote {made.rows} rows to {order.out}.")


@dataset.command()
@click.argument("files", nargs=-1, required=True, type=FILE)
@out_option
@click.option(
    "--unrelated", type=click.IntRange(0), default=3, show_default=True, help="As data.unrelated in training."
)
@click.option("--seed", type=int, default=0, show_default=True)
@overwrite_option
def contrast(files: tuple[Path, ...], out: Path, unrelated: int, seed: int, overwrite: bool) -> None:
    """Make preferences by rule: each right answer of FILES beside a wrong one.

    FILES hold chat rows, documents with questions, or tools with requests. Training on preferences does the same with
    such files by itself.
    """
    from collections import Counter

    from framework.training.config import DataConfig
    from framework.training.data import Material
    from framework.training.datasets import write_rows

    _refuse_existing(out, overwrite)
    made = Material.read(files, "preference").rows(DataConfig(unrelated=unrelated), seed)
    click.echo(f"Wrote {write_rows(out, made)} preference rows to {out}.")
    for rule, count in Counter(row.provenance.details.get("rejected", "as given") for row in made).most_common():
        click.echo(f"  {count}: {rule}")


def _leaks(rows: Sequence[Row], held_out: Sequence[Path]) -> list[Leak]:
    from framework.training.cleaning import find_leaks, read_held_out

    return find_leaks(rows, [item for path in held_out for item in read_held_out(path)]) if held_out else []


def _tell_leaks(found: Sequence[Leak], rows: int) -> int:
    from framework.terminal import one_line

    for leak in found[:SHOWN]:
        click.echo(f"Row {leak.place + 1}: the same {leak.reason} as {leak.where}: {one_line(leak.shared)[:100]}")
    if len(found) > SHOWN:
        click.echo(f"and {len(found) - SHOWN} more.")
    leaking = len({leak.place for leak in found})
    click.echo(f"{leaking} of {rows} rows share something with what is held out." if found else "No row leaks.")
    return int(bool(found))


def _tell_dropped(reasons: Mapping[str, int]) -> None:
    for reason, count in reasons.items():
        if count:
            click.echo(f"  dropped {count}: {reason}")


def _refuse_existing(path: Path, overwrite: bool) -> None:
    from framework.errors import Conflict

    if path.exists() and not overwrite:
        raise Conflict(f"{path} exists.", hint="Name another file, or give --overwrite.", field="out")
