"""`POST /v1/embeddings`."""

from __future__ import annotations

import asyncio
import base64

import numpy as np
from fastapi import APIRouter, Response

from framework.errors import CallerError
from framework.models.base import Embedder, Vectors
from server.routes.json_route import JsonRoute
from server.routes.responses import ERRORS, json_response
from server.schemas import EmbeddingBody, EmbeddingList, EmbeddingRequest, EmbeddingUsage
from server.state import State

router = APIRouter(prefix="/v1", tags=["embeddings"], route_class=JsonRoute, responses=ERRORS)
BATCH = 32  # texts between two looks at whether the client is still there


@router.post("/embeddings", response_model=EmbeddingList, summary="Embed texts as documents")
async def create_embeddings(request: EmbeddingRequest, state: State) -> Response:
    """Unit vectors in the order of the input. A text longer than the model reads is refused, never cut."""
    texts = [request.input] if isinstance(request.input, str) else request.input
    for place, text in enumerate(texts):
        if not text.strip():
            raise CallerError("A text to embed must not be empty.", field=f"input.{place}" if place else "input")
    embedder = await state.directory.embedder(request.model)
    width = embedder.info.dimensions
    if request.dimensions not in (None, width):
        raise CallerError(
            f"{request.model!r} gives {width} dimensions, not {request.dimensions}.",
            hint=f"Leave it out or send {width}.",
            field="dimensions",
        )
    vectors, tokens = await _embed(embedder, texts)
    rows = [
        EmbeddingBody(object="embedding", index=place, embedding=_wire(vector, request.encoding_format == "base64"))
        for place, vector in enumerate(vectors)
    ]
    usage = EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens)
    return json_response(EmbeddingList(object="list", data=rows, model=request.model, usage=usage))


async def _embed(embedder: Embedder, texts: list[str]) -> tuple[Vectors, int]:
    """In batches, so that a client who leaves stops the work; lengths first, so that nothing is computed in vain."""
    counts = await asyncio.to_thread(embedder.count_tokens, texts)
    for place, count in enumerate(counts):
        if count > embedder.info.max_tokens:
            raise CallerError(
                f"The text has {count} tokens; {embedder.info.name} reads {embedder.info.max_tokens}.",
                hint="Split it.",
                field=f"input.{place}" if len(texts) > 1 else "input",
            )
    batches = [
        await asyncio.to_thread(embedder.embed_documents, texts[start : start + BATCH])
        for start in range(0, len(texts), BATCH)
    ]
    return np.concatenate(batches), sum(counts)


def _wire(vector: Vectors, as_base64: bool) -> list[float] | str:
    if as_base64:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    return [float(number) for number in vector]
