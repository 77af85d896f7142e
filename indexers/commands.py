"""`lectern index`, `lectern collections` and `lectern search`: thin wrappers over the library."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from framework.retrieval.retriever import SearchResult
    from indexers.report import IndexReport

collection_option = click.option("-c", "--collection", required=True, metavar="NAME", help="The collection.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class DefaultGroup(click.Group):
    """A group that takes what names none of its commands as arguments of `run`."""

    default = "run"

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands:
            args = [self.default, *args]
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0].startswith("-") and args[0] not in ctx.help_option_names:
            args = [self.default, *args]
        return super().parse_args(ctx, args)


@click.group(cls=DefaultGroup, context_settings={"help_option_names": ["-h", "--help"]})
def index() -> None:
    """Index files, or look at an index.

    \b
    lectern index PATH... -c NAME   bring a collection to what the files hold
    lectern index status -c NAME    what it holds, and what it could not take in
    lectern index verify -c NAME    whether store and manifest agree

    A folder that is called "status" is indexed as ./status.
    """


@index.command("run")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@collection_option
@click.option("--dry-run", is_flag=True, help="Tell what would be done, and do nothing.")
@click.option("--rebuild", is_flag=True, help="Cut and embed everything anew, for another embedder or chunker.")
@json_option
def run(paths: tuple[str, ...], collection: str, dry_run: bool, rebuild: bool, as_json: bool) -> int:
    """Bring a collection to what the files at PATH hold. The default of `lectern index`.

    Exit status: 1 when files were quarantined.
    """
    from indexers.library import open_library
    from indexers.terminal import ProgressDisplay, print_report

    with open_library() as library, ProgressDisplay(quiet=as_json or dry_run) as display:
        report = library.index(paths, collection, dry_run=dry_run, rebuild=rebuild, progress=display.show)
    if as_json:
        print_json(report)
    else:
        print_report(report)
    return 0 if report.ok else 1


@index.command("status")
@collection_option
@json_option
def status(collection: str, as_json: bool) -> int:
    """What a collection holds, and which files it could not take in. Exit status 1 when there are such."""
    from indexers.library import open_library
    from indexers.terminal import print_status

    with open_library() as library:
        found = library.status(collection)
    if as_json:
        print_json(found)
    else:
        print_status(found)
    return 1 if found.quarantined else 0


@index.command("verify")
@collection_option
@click.option("--repair", is_flag=True, help="Mend the store from the text that the manifest keeps.")
@json_option
def verify(collection: str, repair: bool, as_json: bool) -> int:
    """Compare store and manifest, point by point. Exit status 1 when they differ and were not mended."""
    from indexers.library import open_library
    from indexers.terminal import print_verified

    with open_library() as library:
        found = library.verify(collection, repair)
    if as_json:
        print_json(found)
    else:
        print_verified(found)
    return 0 if found.ok else 1


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def collections() -> None:
    """List, inspect and remove collections and documents."""


@collections.command("list")
@json_option
def list_(as_json: bool) -> None:
    """All collections."""
    from indexers.library import open_library
    from indexers.terminal import print_collections

    with open_library() as library:
        found = library.collections()
    if as_json:
        click.echo(json.dumps([asdict(item) for item in found], ensure_ascii=False, indent=2))
    else:
        print_collections(found)


@collections.command("show")
@click.argument("collection")
@json_option
def show(collection: str, as_json: bool) -> None:
    """One collection and its documents."""
    from framework.terminal import one_line
    from indexers.library import open_library
    from indexers.terminal import print_status

    with open_library() as library:
        found, documents = library.status(collection), library.documents(collection)
    if as_json:
        rows = [asdict(item) for item in documents]
        click.echo(json.dumps({**asdict(found), "items": rows}, ensure_ascii=False, indent=2))
        return
    print_status(found)
    for item in documents:
        click.echo(f"  {one_line(item.document_id)}" + ("" if item.live else "  (waits for the next run)"))


@collections.command("remove")
@click.argument("collection")
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
def remove(collection: str, yes: bool) -> None:
    """Remove a collection with all its documents."""
    from indexers.library import open_library

    with open_library() as library:
        found = library.status(collection)
        if not yes:
            click.confirm(f"Remove {collection!r} with {found.documents} documents?", abort=True)
        library.remove_collection(collection)
    click.echo(f"Removed the collection {collection} with {found.documents} documents.")


@collections.command("remove-document")
@click.argument("collection")
@click.argument("document_id")
def remove_document(collection: str, document_id: str) -> None:
    """Remove one document; it comes back when its file is indexed again."""
    from indexers.library import open_library

    with open_library() as library:
        library.remove_document(collection, document_id)
    click.echo(f"Removed {document_id} from {collection}.")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("query")
@collection_option
@click.option("-k", type=int, help="How many hits.")
@click.option("--mode", type=click.Choice(["hybrid", "dense", "lexical"]), help="How to rank.")
@click.option("--rerank/--no-rerank", default=None, help="Let a model read the best hits and order them anew.")
@click.option("--mmr", type=float, metavar="0..1", help="Diversity: 1 is pure relevance, 0 pure diversity.")
@click.option("--filter", "filters", multiple=True, metavar="KEY=VALUE", help="Only documents with this; repeatable.")
@json_option
def search(
    query: str,
    collection: str,
    k: int | None,
    mode: Any,
    rerank: bool | None,
    mmr: float | None,
    filters: tuple[str, ...],
    as_json: bool,
) -> None:
    """Search a collection. QUERY is a question or a few words."""
    from framework.bridge import run_sync
    from framework.retrieval.filters import parse_filter
    from indexers.library import open_library
    from indexers.terminal import print_hits

    with open_library() as library:
        retriever = library.retriever(collection)
        chosen = parse_filter(filters)
        found = run_sync(retriever.search(query, k=k, mode=mode, mmr=mmr, filter=chosen, rerank=rerank))
    if as_json:
        print_json(found)
    else:
        print_hits(query, found)


def print_json(value: IndexReport | SearchResult | Any) -> None:
    click.echo(json.dumps(asdict(value), ensure_ascii=False, indent=2))
