"""`GET /v1/models`, and one of them."""

from __future__ import annotations

from fastapi import APIRouter, Response

from server.directory import Entry, UnknownModel
from server.routes.responses import ERRORS, json_response
from server.schemas import ModelBody, ModelList
from server.state import ServerState, State

router = APIRouter(prefix="/v1", tags=["models"], responses=ERRORS)


@router.get("/models", response_model=ModelList, summary="List agents, chat models and embedding models")
async def list_models(state: State) -> Response:
    """Every name that a request may give as its `model`."""
    rows = [_body(entry, state) for entry in await state.directory.entries()]
    return json_response(ModelList(object="list", data=rows))


@router.get("/models/{model:path}", response_model=ModelBody, summary="Look up one model")
async def retrieve_model(model: str, state: State) -> Response:
    """The model of that name, or 404."""
    for entry in await state.directory.entries():
        if entry.id == model:
            return json_response(_body(entry, state))
    raise UnknownModel(model)


def _body(entry: Entry, state: ServerState) -> ModelBody:
    return ModelBody(id=entry.id, object="model", created=state.started, owned_by=entry.owned_by, kind=entry.kind)
