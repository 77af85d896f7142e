"""`GET /health` and `GET /ready`, for whatever watches the server."""

from __future__ import annotations

from fastapi import APIRouter, Response

from server.routes.responses import ERRORS, json_response
from server.schemas import Health, Readiness
from server.state import State

router = APIRouter(tags=["health"], responses=ERRORS)


@router.get("/health", response_model=Health, summary="Whether the process answers")
async def health() -> Response:
    """Always ok: an answer at all is the answer."""
    return json_response(Health(status="ok"))


@router.get("/ready", response_model=Readiness, summary="Whether the default models are loaded")
async def ready(state: State) -> Response:
    """503 until they are, or when they can't be; the message says which."""
    state.check_ready()
    names = [entry.id for entry in await state.directory.entries()]
    return json_response(Readiness(status="ready", models=names))
