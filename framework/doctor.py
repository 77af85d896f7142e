"""`lectern doctor`: what is installed, configured, found, reachable and held, and what to do where something is amiss.

Every check gives findings and never raises. The layers above are looked at through entry points only.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import click

import framework
from framework.config import Settings, cache_dir
from framework.errors import LecternError, NotFound, StoreLocked

if TYPE_CHECKING:
    from framework.models.catalog import Catalog
    from framework.models.config import EndpointConfig, ModelsConfig

Area: TypeAlias = Literal["installed", "configuration", "state", "models", "endpoints"]
REACH_SECONDS = 3.0
DECODERS = {"kernels": "the C++ kernels", "torch": "torch", "transformers": "the transformers library"}
FREE_BYTES = 1 << 30
REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)")
EXTRA = re.compile(r"extra\s*==\s*['\"]([\w-]+)['\"]")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `fix` says what to do and is there for problems only."""

    area: Area
    name: str
    detail: str
    fix: str = ""


def examine() -> list[Finding]:
    """All findings, in the order in which they are read."""
    return [finding for check in (_installed, _torch, _configuration, _state, _models) for finding in check()]


def _installed() -> Iterator[Finding]:
    yield Finding("installed", "lectern", f"{version('lectern')} on Python {platform.python_version()}, {sys.prefix}")
    for name, place in framework.shadowed().items():
        yield Finding("installed", name, f"hidden by {place}", "Rename that, or start Python in another folder.")
    needed, extras = _requirements()
    have = {name: _version(name) for name in needed}
    yield Finding("installed", "libraries", ", ".join(f"{name} {found}" for name, found in have.items() if found))
    for name in (name for name, found in have.items() if not found):
        yield Finding("installed", name, "missing", f"Run: pip install {name}")
    for extra, names in sorted(extras.items()):
        missing = [name for name in names if not _version(name)]
        what = f"without {', '.join(missing)}" if missing else "complete"
        yield Finding("installed", f"extra [{extra}]", what)
    for group in ("lectern.commands", "lectern.tools"):
        yield from _loadable(group)


def _requirements() -> tuple[list[str], dict[str, list[str]]]:
    """What Lectern needs, and what each of its extras adds."""
    needed: list[str] = []
    extras: dict[str, list[str]] = {}
    for line in requires("lectern") or ():
        name = REQUIREMENT.match(line)
        assert name, line
        extra = EXTRA.search(line)
        (extras.setdefault(extra[1], []) if extra else needed).append(name[1])
    return needed, extras


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _loadable(group: str) -> Iterator[Finding]:
    """Entry points that can't be imported: a plugin that is broken, or a part of Lectern that is missing."""
    for point in entry_points(group=group):
        try:
            point.load()
        except Exception as error:  # noqa: BLE001  a plugin's import can fail in any way
            owner = point.dist.name if point.dist else "its package"
            yield Finding(
                "installed", f"{group} {point.name}", f"{point.value}: {error!r}", f"Mend or uninstall {owner}."
            )


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("installed", "torch", f"can't be imported: {error}", "Run: pip install torch")
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    yield Finding("installed", "torch", f"{torch.__version__}, built for {build}, computes on {device}")


def _configuration() -> Iterator[Finding]:
    try:
        settings = Settings.load()
    except LecternError as error:
        yield Finding("configuration", "file", error.message, error.hint or "Mend or remove it.")
        return
    yield Finding("configuration", "file", str(settings.path or "none; the defaults and the environment hold"))
    for point in sorted(entry_points(group="lectern.config"), key=lambda point: point.name):
        if point.name not in settings.values:
            continue
        try:
            settings.section(point.name, point.load())
        except LecternError as error:
            yield Finding("configuration", f"[{point.name}]", error.message, error.hint or "Mend that line.")
        except (ImportError, AttributeError) as error:
            yield Finding("configuration", f"[{point.name}]", f"{point.value}: {error!r}", "Reinstall Lectern.")
        else:
            yield Finding("configuration", f"[{point.name}]", f"{len(settings.values[point.name])} keys, valid")


def _state() -> Iterator[Finding]:
    try:
        home = Settings.load().home
    except LecternError:
        home = None  # told with the configuration
    if home is not None:
        yield _folder("home", home)
        yield from _holder(home / "store")
    yield _folder("cache", cache_dir())


def _folder(name: str, folder: Path) -> Finding:
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        key = "LECTERN_LECTERN__HOME" if name == "home" else "LECTERN_CACHE"
        return Finding("state", name, f"{folder} can't be written", f"Change its permissions, or set {key} elsewhere.")
    free = shutil.disk_usage(place).free
    told = f"{folder}{'' if folder.exists() else ' (not there yet)'}, {free / 1e9:.1f} GB free"
    return Finding("state", name, told, "Make room." if free < FREE_BYTES else "")


def _holder(store: Path) -> Iterator[Finding]:
    from framework.retrieval.lock import DirectoryLock

    lock = DirectoryLock(store)
    if not lock.path.exists():
        yield Finding("state", "store", "nothing is indexed yet")
        return
    try:
        lock.acquire()
    except StoreLocked as error:
        yield Finding("state", "store", error.message)
    except OSError as error:
        yield Finding("state", "store", f"its lock can't be taken: {error}", f"Change the permissions of {store}.")
    else:
        lock.release()
        yield Finding("state", "store", f"{store}, held by nobody")


def _models() -> Iterator[Finding]:
    from framework.models.catalog import Catalog
    from framework.models.config import ModelsConfig

    try:
        config = Settings.load().section("models", ModelsConfig)
    except LecternError:
        return  # told with the configuration
    catalog = Catalog(config)
    if config.chat not in config.endpoints:
        from framework.models.adapters import split_name

        yield _model("chat", split_name(config.chat)[0], catalog)
        yield from _engine(split_name(config.chat)[0], catalog)
    yield _model("embedder", config.embedder, catalog)
    for name, endpoint in config.endpoints.items():
        yield _endpoint(name, endpoint, config)


def _model(role: str, name: str, catalog: Catalog) -> Finding:
    try:
        card = catalog.card(name)
        here = catalog.at_hand(card)
    except LecternError as error:
        return Finding("models", role, f"{name}: {error.message}", error.hint or f"Set models.{role} to another.")
    fix = "" if here else f"Run: lectern models pull {name}"
    where = f"from the {card.origin} {card.source}" if here else f"not here yet, to be fetched from {card.source}"
    return Finding("models", role, f"{name}, {where}", fix)


def _engine(name: str, catalog: Catalog) -> Iterator[Finding]:
    """What the chat model is computed with. Compiles the kernels, where that was not done yet."""
    from framework.engine.decoders import decoder_for

    engine = catalog.config.engine
    try:
        yield _kernels(engine.kernels)
        folder = catalog.folder(catalog.card(name))
        if folder is None:
            yield Finding("models", "decoder", f"known after `lectern models pull {name}` or a first request")
            return
        chosen = decoder_for(
            folder,
            block_size=engine.block_size,
            dtype=engine.dtype,
            kv_dtype=engine.kv_dtype,
            device=engine.device,
            kernels=engine.kernels,
        )
    except NotFound:
        return  # told with the model
    except LecternError as error:
        yield Finding("models", "decoder", f"{name}: {error.message}", error.hint or "Choose another chat model.")
    else:
        yield Finding("models", "decoder", f"{name} is computed by {DECODERS[chosen]}")


def _kernels(wanted: bool) -> Finding:
    from framework.engine.kernels.build import find_compiler, library

    if not wanted or os.environ.get("LECTERN_KERNELS") == "off":
        return Finding("models", "kernels", "turned off")
    compiler, found = find_compiler(), library()
    if compiler is None:
        return Finding("models", "kernels", "no C++ compiler was found: models run on torch, more slowly")
    if found is None:
        fix = "Its message is in the log; mend it, or set LECTERN_KERNELS=off."
        return Finding("models", "kernels", f"{compiler} can't compile them", fix)
    return Finding("models", "kernels", f"compiled with {compiler}")


def _endpoint(name: str, endpoint: EndpointConfig, config: ModelsConfig) -> Finding:
    """Whether the server answers at all, and takes the key."""
    import httpx

    key = os.environ.get(endpoint.api_key_env, "") if endpoint.api_key_env else ""
    if endpoint.api_key_env and not key:
        return Finding("endpoints", name, f"its key {endpoint.api_key_env} is not set", "Set that variable.")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(f"{endpoint.base_url.rstrip('/')}/models", headers=headers, timeout=REACH_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        fix = f"Start the server, or mend models.endpoints.{name}.base_url."
        return Finding("endpoints", name, f"{endpoint.base_url} can't be reached: {error}", fix)
    if answer.status_code in (401, 403):
        return Finding("endpoints", name, f"{endpoint.base_url} refuses the key", "Set the right key.")
    role = ", the default chat model" if name == config.chat else ""
    return Finding("endpoints", name, f"{endpoint.base_url} answers ({answer.status_code}){role}")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Tell what is installed, found, reachable and shadowed.

    The exit status is 3 if something needs mending; each such line says what to do.
    """
    findings = examine()
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False))
    else:
        _print(findings, click.echo)
    if any(finding.fix for finding in findings):
        context.exit(3)


def _print(findings: list[Finding], tell: Callable[[str], None]) -> None:
    area = ""
    for finding in findings:
        if finding.area != area:
            area = finding.area
            tell(f"\n{area}" if finding is not findings[0] else area)
        tell(f"  {'!' if finding.fix else ' '} {finding.name}: {finding.detail}")
        if finding.fix:
            tell(f"      -> {finding.fix}")
    problems = sum(bool(finding.fix) for finding in findings)
    tell(f"\n{problems} to mend." if problems else "\nNothing to mend.")
