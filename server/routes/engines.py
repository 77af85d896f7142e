"""`GET /v1/engines`: what the chat models that run in this process do, and how fast."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from framework.models import engines
from server.routes.responses import ERRORS, json_response

router = APIRouter(prefix="/v1", tags=["engines"], responses=ERRORS)


class TimesBody(BaseModel):
    """Seconds, over the latest 512 requests."""

    mean: float
    p50: float
    p95: float


class FiguresBody(BaseModel):
    """Requests that ended since the engine was made."""

    finished: int
    cancelled: int = Field(description="Left by their reader before their end.")
    failed: int
    prompt_tokens: int
    cached_tokens: int = Field(description="Tokens of prompts whose keys and values were there already.")
    cache_hit_rate: float = Field(description="Share of the prompts' tokens that was cached.")
    generated_tokens: int
    preemptions: int = Field(description="How often a request had to give its memory to another and start anew.")
    queue: TimesBody = Field(description="From arrival to the first step.")
    ttft: TimesBody = Field(description="From arrival to the first token.")
    tpot: TimesBody = Field(description="Between two tokens, on average of a request.")


class EngineBody(FiguresBody):
    """One engine: what is in it now, and what was."""

    object: Literal["engine"] = "engine"
    model: str
    running: int
    waiting: int
    paused: int = Field(description="Requests, of those that run or wait, whose readers are behind.")
    tokens_per_second: float = Field(description="Generated in all, over the last ten seconds.")
    blocks_used: int = Field(description="Blocks of keys and values that requests hold.")
    blocks_total: int
    adapters: dict[str, FiguresBody] = Field(description="The same of each adapter, by its digest.")


class EngineList(BaseModel):
    object: Literal["list"] = "list"
    data: list[EngineBody]


@router.get("/engines", response_model=EngineList, summary="Figures of the models that run in this process")
async def list_engines() -> Response:
    """One entry for each model folder and way of running it. Before its first request an engine has no blocks."""
    rows = [EngineBody(object="engine", model=name, **figures.to_dict()) for name, figures in engines.statistics()]
    return json_response(EngineList(object="list", data=rows))
