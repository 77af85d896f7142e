"""`POST /v1/feedback`: whether an agent's answer was right."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from agents.feedback import MAX_TEXT, Feedback
from server.routes.json_route import JsonRoute
from server.routes.responses import ERRORS, json_response
from server.schemas import Strict
from server.state import State

router = APIRouter(prefix="/v1", tags=["feedback"], route_class=JsonRoute, responses=ERRORS)


class FeedbackRequest(Strict):
    """`POST /v1/feedback`."""

    run_id: str = Field(max_length=200, description="`run.run_id` of an agent's answer of this server's.")
    verdict: Literal["up", "down"] | None = Field(None, description="May be left out with a correction: it is down.")
    correction: str = Field("", max_length=MAX_TEXT, description="What the answer should have been.")
    comment: str = Field("", max_length=MAX_TEXT)


class FeedbackBody(BaseModel):
    """What is stored now."""

    run_id: str
    object: Literal["feedback"] = "feedback"
    verdict: Literal["up", "down"]
    correction: str
    comment: str
    created: int


@router.post("/feedback", response_model=FeedbackBody, summary="Judge an agent's answer")
async def give_feedback(request: FeedbackRequest, state: State) -> Response:
    """Stored with the question and the passages of that run; judging it again replaces what was said."""
    store = Feedback(state.directory.settings.home)
    made = await store.ajudge(
        state.library.tenant, request.run_id, request.verdict, request.correction, request.comment
    )
    body = FeedbackBody(
        run_id=made.run_id,
        object="feedback",
        verdict=made.verdict,
        correction=made.correction,
        comment=made.comment,
        created=int(made.given),
    )
    return json_response(body)
