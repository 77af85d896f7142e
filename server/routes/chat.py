"""`POST /v1/chat/completions`."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from fastapi import APIRouter, Response

from framework.models.base import TENANT
from server import conversation
from server.replies import Envelope, chunks, completion
from server.routes.json_route import JsonRoute
from server.routes.responses import ERRORS, json_response
from server.schemas import ChatCompletion, ChatRequest
from server.state import State
from server.streaming import Begun, EventStream

router = APIRouter(prefix="/v1", tags=["chat"], route_class=JsonRoute, responses=ERRORS)
STREAMED = {
    "description": "The answer; with `stream: true` as server-sent events, each a `chat.completion.chunk`.",
    "content": {"text/event-stream": {"schema": {"$ref": "#/components/schemas/ChatChunk"}}},
}


@router.post(
    "/chat/completions",
    response_model=ChatCompletion,
    responses={200: STREAMED},
    summary="Answer a conversation with a model or an agent",
)
async def create_chat_completion(request: ChatRequest, state: State) -> Response:
    """`model` is a chat model or an agent of `GET /v1/models`. An agent's answer carries citations and steps."""
    TENANT.set(state.library.tenant)
    asked = await asyncio.to_thread(conversation.read, request)
    responder = await state.directory.responder(request.model)
    envelope = Envelope(request.model)
    pieces = responder.pieces(asked)
    if request.stream:
        with_usage = request.stream_options is not None and request.stream_options.include_usage
        return EventStream(await Begun.of(chunks(pieces, envelope, with_usage)))
    async with aclosing(pieces):
        return json_response(await completion(pieces, envelope))
