"""What routes share in answering."""

from __future__ import annotations

from typing import Any

from fastapi import Response
from pydantic import BaseModel

from server.schemas import ErrorBody

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request has to be changed; `param` names what of it."},
    "5XX": {"model": ErrorBody, "description": "Whoever runs the server has to act."},
}


def json_response(body: BaseModel) -> Response:
    """A body as it was built: fields that nobody set are left out."""
    return Response(body.model_dump_json(exclude_unset=True).encode(), media_type="application/json")
