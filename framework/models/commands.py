"""`lectern models`: what there is, what is known of it, and fetching it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from framework.config import Settings
from framework.models.config import ModelsConfig

if TYPE_CHECKING:
    from framework.models.base import ModelCard
    from framework.models.catalog import Catalog
    from framework.models.progress import Report

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def models() -> None:
    """List, show, fetch and quantize models."""


@models.command("list")
@AS_JSON
def list_models(as_json: bool) -> None:
    """List the models known by name, and the configured endpoints.

    Any Hugging Face id, folder or .gguf file is a name too.
    """
    config, catalog = _catalog()
    rows = [
        {**_row(card), "at_hand": catalog.at_hand(card), "role": _role(card.name, config)} for card in catalog.cards()
    ]
    rows += [
        {"name": name, "kind": "chat", "origin": "endpoint", "source": f"{point.base_url} {point.model}",
         "context_length": point.context_length, "at_hand": None, "role": _role(name, config)}
        for name, point in config.endpoints.items()
    ]  # fmt: skip
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for title in ("name", "kind", "languages", "tokens", "licence", "here"):
        table.add_column(title, justify="right" if title == "tokens" else "left", no_wrap=True)
    for row in rows:
        here = {True: "yes", False: f"no, {row.get('size_mb')} MB", None: "endpoint"}[row["at_hand"]]
        languages, tokens = " ".join(row.get("languages", ())) or "many", str(row["context_length"] or "")
        table.add_row(row["name"], row["kind"], languages, tokens, row.get("licence", ""), here)
    Console().print(table)
    click.echo(f"\nThe defaults: {config.chat} for chat, {config.embedder} as embedder.")


@models.command()
@click.argument("name")
@AS_JSON
def show(name: str, as_json: bool) -> None:
    """Show what is known of the model NAME, without fetching it."""
    config, catalog = _catalog()
    if name in config.endpoints:
        values: dict[str, Any] = {"name": name, "origin": "endpoint", **asdict(config.endpoints[name])}
    else:
        card = catalog.card(name)
        values = {**_row(card), "at_hand": catalog.at_hand(card)}
        if "note" in card.extra:
            del values["kind"], values["context_length"]
    _print(values, as_json)


@models.command()
@click.argument("name")
@click.option("--revision", help="Commit, tag or branch of a Hugging Face id.")
@AS_JSON
def pull(name: str, revision: str | None, as_json: bool) -> None:
    """Make the model NAME ready: download it, or convert it from GGUF."""
    _, catalog = _catalog()
    with _bar() as progress:
        resolved = catalog.resolve(name, revision=revision, progress=progress, refresh=True)
    _print({**_row(resolved.card), "path": str(resolved.path)}, as_json)


@models.command()
@click.argument("name")
@click.argument("folder", type=click.Path(path_type=Path))
@AS_JSON
def quantize(name: str, folder: Path, as_json: bool) -> None:
    """Save the chat model NAME with 8-bit weights into a new FOLDER.

    The folder is a model's name like any other. Its layout is compressed-tensors' W8A8, which vLLM reads too.
    """
    from framework.engine.quantize import save_quantized

    _, catalog = _catalog()
    with _bar() as progress:
        resolved = catalog.resolve(name, progress=progress)
    saved = save_quantized(resolved.path, folder)
    sizes = [sum(file.stat().st_size for file in where.glob("*.safetensors")) for where in (resolved.path, saved)]
    _print({"path": str(saved), "bytes": sizes[1], "bytes_before": sizes[0]}, as_json)


def _catalog() -> tuple[ModelsConfig, Catalog]:
    from framework.models.catalog import Catalog

    config = Settings.load().section("models", ModelsConfig)
    return config, Catalog(config)


def _row(card: ModelCard) -> dict[str, Any]:
    values = asdict(card)
    return {**{key: value for key, value in values.items() if key != "extra"}, **card.extra}


def _role(name: str, config: ModelsConfig) -> str:
    return {config.chat: "default chat", config.embedder: "default embedder"}.get(name, "")


def _print(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(values, indent=2, ensure_ascii=False))
        return
    width = max(map(len, values))
    for key, value in values.items():
        shown = " ".join(value) if isinstance(value, tuple) else value
        if shown not in ("", None):
            click.echo(f"{key:{width}}  {shown!r}" if key.endswith("prefix") else f"{key:{width}}  {shown}")


@contextmanager
def _bar() -> Iterator[Report]:
    """A progress bar on the terminal's error stream, one line a step."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        tasks: dict[str, Any] = {}

        def report(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bar.add_task(step, total=total or None)
            bar.update(tasks[step], completed=done, total=total or None)

        yield report
