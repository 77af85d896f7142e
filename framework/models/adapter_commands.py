"""`lectern adapters`: name adapters, look at them, and say which may be used. A running server follows at once."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from framework.config import Settings
from framework.registry import Registry
from framework.terminal import plain

if TYPE_CHECKING:
    from framework.models.adapters import AdapterStore
    from framework.models.named_adapter import NamedAdapter

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
NAME = click.argument("name")


class Adapters(click.Group):
    """Its own commands, and those of the layers above, found by entry point: what trains adapters also checks them."""

    others: Registry[click.Command] = Registry("command of adapters", "lectern.commands.adapters")

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self.others.names()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        return own or (self.others.get(cmd_name) if cmd_name in self.others else None)


@click.group(cls=Adapters)
def adapters() -> None:
    """Add, check, list and switch LoRA and (IA)³ adapters.

    An adapter NAME on the model BASE is asked for as the model BASE:NAME, wherever a model is named.
    """


@adapters.command()
@NAME
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--base", metavar="MODEL", help="The model it was trained on.  [default: models.chat]")
@click.option("--replace", "overwrite", is_flag=True, help="Give NAME new content; running requests keep the old.")
@AS_JSON
def add(name: str, folder: Path, base: str | None, overwrite: bool, as_json: bool) -> None:
    """Add the adapter in FOLDER, as PEFT's save_pretrained wrote it, under NAME.

    Its two files are checked against the base and copied; FOLDER is not needed any more. Its state is "unchecked"
    until `lectern adapters check NAME` has compared what is served with what PEFT gives.
    """
    from framework.models.catalog import Catalog
    from framework.models.config import ModelsConfig

    settings, store = _opened()
    config = settings.section("models", ModelsConfig)
    resolved = Catalog(config).resolve(base or config.chat)
    made = store.add(name, folder, resolved, settings.core.tenant, overwrite=overwrite)
    _print(made, as_json)


@adapters.command("list")
@AS_JSON
def list_adapters(as_json: bool) -> None:
    """List the adapters."""
    settings, store = _opened()
    found = store.list(settings.core.tenant)
    if as_json:
        click.echo(json.dumps([_row(adapter) for adapter in found], indent=2, ensure_ascii=False))
    elif not found:
        click.echo("No adapters. `lectern adapters add NAME FOLDER --base MODEL` adds one.")
    else:
        width = max(len(adapter.name) for adapter in found)
        for adapter in found:
            origin = ["shipped"] if adapter.origin == "shipped" else []
            before = ["before the one that ships"] if store.hides(adapter) else []
            state = ", ".join([adapter.state, *(["pinned"] if adapter.pinned else []), *origin, *before])
            size = f"{adapter.bytes / 1e6:.1f} MB"
            why = f"  {plain(adapter.reason)}" if adapter.state == "refused" else ""
            click.echo(f"{adapter.name:{width}}  {state}  {size}  {plain(adapter.base)}  {adapter.digest[:12]}{why}")


@adapters.command()
@NAME
@AS_JSON
def show(name: str, as_json: bool) -> None:
    """Show the adapter NAME."""
    settings, store = _opened()
    _print(store.show(name, settings.core.tenant), as_json)


@adapters.command()
@NAME
@AS_JSON
def activate(name: str, as_json: bool) -> None:
    """Let requests use the adapter NAME again."""
    _change(name, as_json, active=True)


@adapters.command()
@NAME
@AS_JSON
def deactivate(name: str, as_json: bool) -> None:
    """Refuse new requests to the adapter NAME; those that run end."""
    _change(name, as_json, active=False)


@adapters.command()
@NAME
@AS_JSON
def pin(name: str, as_json: bool) -> None:
    """Keep the adapter NAME resident once an engine has loaded it."""
    _change(name, as_json, pinned=True)


@adapters.command()
@NAME
@AS_JSON
def unpin(name: str, as_json: bool) -> None:
    """Let the adapter NAME make room for others again."""
    _change(name, as_json, pinned=False)


@adapters.command()
@NAME
@AS_JSON
def remove(name: str, as_json: bool) -> None:
    """Take the name NAME away; requests that run end with what they began with."""
    settings, store = _opened()
    gone = store.remove(name, settings.core.tenant)
    click.echo(json.dumps(_row(gone), indent=2, ensure_ascii=False) if as_json else f"Removed {name}.")


def _change(name: str, as_json: bool, **state: bool) -> None:
    settings, store = _opened()
    _print(store.change(name, settings.core.tenant, **state), as_json)


def _opened() -> tuple[Settings, AdapterStore]:
    from framework.models.adapters import AdapterStore

    settings = Settings.load()
    return settings, AdapterStore.open(settings)


def _row(adapter: NamedAdapter) -> dict[str, Any]:
    values = asdict(adapter)
    left_out = ("tenant", "parity", "previous", "promotion")
    shown = {key: value for key, value in values.items() if key not in left_out}
    earlier = [version.digest for version in reversed(adapter.previous)]
    return {"model": adapter.model, "state": adapter.state, **shown, "rollback_to": earlier}


def _print(adapter: NamedAdapter, as_json: bool) -> None:
    values = _row(adapter)
    if as_json:
        click.echo(json.dumps(values, indent=2, ensure_ascii=False))
        return
    shown = {key: text for key, value in values.items() if (text := _shown(key, value))}
    width = max(map(len, shown))
    for key, text in shown.items():
        click.echo(f"{key:{width}}  {plain(text)}")


def _shown(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key == "added":
        return datetime.fromtimestamp(value).astimezone().isoformat(" ", "seconds")
    return ", ".join(digest[:12] for digest in value) if key == "rollback_to" else str(value)
