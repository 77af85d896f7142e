"""`/v1/adapters`: LoRA and (IA)³ adapters by name. One that is active is the model BASE:NAME.

Weights are not uploaded: `source` names a folder inside the one that `server.adapters` configures, and nothing else of
the machine can be named. What is added is copied, so the folder may go afterwards.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from framework.errors import CallerError, NotFound
from framework.models.named_adapter import NamedAdapter
from framework.models.named_adapter import Origin as AdapterOrigin
from framework.models.named_adapter import State as AdapterState
from server.routes.json_route import JsonRoute
from server.routes.responses import ERRORS, json_response
from server.schemas import Strict
from server.state import ServerState, State

router = APIRouter(prefix="/v1/adapters", tags=["adapters"], route_class=JsonRoute, responses=ERRORS)
SOURCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class AdapterRequest(Strict):
    """`POST /v1/adapters`."""

    name: str = Field(description="1 to 64 letters, digits, dots, dashes and underscores, a letter or digit first.")
    base: str = Field(description="The chat model that it was trained on, as GET /v1/models names it.")
    source: str = Field(description="A folder, as PEFT's save_pretrained wrote it, inside the one of server.adapters.")
    replace: bool = Field(False, description="Give a name that exists new content; running requests keep the old.")


class AdapterBody(BaseModel):
    """An adapter. `digest` is the SHA-256 of its content; `created` is when the name was given this content."""

    id: str
    object: Literal["adapter"] = "adapter"
    model: str = Field(description="What requests give as their model.")
    base: str
    digest: str
    bytes: int
    created: int
    state: AdapterState = Field(description="live: passed the parity gate; unchecked: nobody asked it; refused by it.")
    reason: str = Field(description="Why the parity gate refused it; empty otherwise.")
    active: bool
    pinned: bool
    origin: AdapterOrigin = Field(description="shipped: it comes with Lectern, and can't be changed or removed.")


class AdapterList(BaseModel):
    object: Literal["list"] = "list"
    data: list[AdapterBody]


class AdapterRemoved(BaseModel):
    id: str
    object: Literal["adapter"] = "adapter"
    deleted: Literal[True] = True


@router.get("", response_model=AdapterList, summary="List adapters")
async def list_adapters(state: State) -> Response:
    """Those that are deactivated too."""
    found = await asyncio.to_thread(state.directory.adapters.list, state.library.tenant)
    return json_response(AdapterList(object="list", data=[_body(adapter, state) for adapter in found]))


@router.post("", response_model=AdapterBody, summary="Add an adapter, or replace one")
async def add_adapter(request: AdapterRequest, state: State) -> Response:
    """Refused, with the reason, if anything in its files can't be served on the base."""
    folder = _source(request.source, state)
    base = await state.directory.base(request.base)
    made = await asyncio.to_thread(
        state.directory.adapters.add,
        request.name,
        folder,
        base,
        state.library.tenant,
        overwrite=request.replace,
    )
    return json_response(_body(made, state))


@router.get("/{name}", response_model=AdapterBody, summary="Look up one adapter")
async def retrieve_adapter(name: str, state: State) -> Response:
    """The adapter of that name, or 404."""
    found = await asyncio.to_thread(state.directory.adapters.show, name, state.library.tenant)
    return json_response(_body(found, state))


@router.delete("/{name}", response_model=AdapterRemoved, summary="Remove an adapter")
async def remove_adapter(name: str, state: State) -> Response:
    """Requests that run end with what they began with."""
    gone = await asyncio.to_thread(state.directory.adapters.remove, name, state.library.tenant)
    state.directory.forget(f"{state.directory.base_name(gone.base)}:{name}")
    return json_response(AdapterRemoved(id=name, object="adapter", deleted=True))


@router.post("/{name}/activate", response_model=AdapterBody, summary="Let requests use an adapter")
async def activate_adapter(name: str, state: State) -> Response:
    """It is listed as a model again."""
    return await _change(name, state, active=True)


@router.post("/{name}/deactivate", response_model=AdapterBody, summary="Refuse new requests to an adapter")
async def deactivate_adapter(name: str, state: State) -> Response:
    """Requests that run end; new ones get 409."""
    return await _change(name, state, active=False)


@router.post("/{name}/pin", response_model=AdapterBody, summary="Keep an adapter resident")
async def pin_adapter(name: str, state: State) -> Response:
    """Once an engine has loaded it, it makes room for no other."""
    return await _change(name, state, pinned=True)


@router.post("/{name}/unpin", response_model=AdapterBody, summary="Let an adapter make room for others")
async def unpin_adapter(name: str, state: State) -> Response:
    """The least recently used one goes first."""
    return await _change(name, state, pinned=False)


async def _change(name: str, state: ServerState, **wanted: bool) -> Response:
    made = await asyncio.to_thread(state.directory.adapters.change, name, state.library.tenant, **wanted)
    return json_response(_body(made, state))


def _source(name: str, state: ServerState) -> Path:
    """The folder of that name inside the configured one, and never anything outside it."""
    if state.config.adapters is None:
        raise CallerError(
            "This server takes no adapters over HTTP.",
            hint="Set server.adapters to the folder that has them, or run `lectern adapters add` there.",
            field="source",
        )
    root = state.directory.settings.base / state.config.adapters.expanduser()
    folder = root / name
    if not SOURCE.fullmatch(name) or folder.is_symlink() or not folder.is_dir():
        raise NotFound(
            f"There is no folder {name[:80]!r} among the adapters of this server.",
            hint="`source` is the plain name of a folder inside server.adapters.",
            field="source",
        )
    return folder


def _body(adapter: NamedAdapter, state: ServerState) -> AdapterBody:
    base = state.directory.base_name(adapter.base)
    return AdapterBody(
        id=adapter.name,
        object="adapter",
        model=f"{base}:{adapter.name}",
        base=base,
        digest=adapter.digest,
        bytes=adapter.bytes,
        created=int(adapter.added),
        state=adapter.state,
        reason=adapter.reason,
        active=adapter.active,
        pinned=adapter.pinned,
        origin=adapter.origin,
    )
