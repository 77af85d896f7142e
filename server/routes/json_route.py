"""Reads JSON bodies with a parser that has limits, in place of the standard library's."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json


class _JsonRequest(Request):
    async def json(self) -> Any:
        """The body as Python values.

        Nesting deeper than 200, a lone surrogate, text that is not UTF-8 and a number of more than 4300 digits are
        refused, each with its place. NaN and infinity pass: the fields refuse them, and know their names.
        """
        try:
            return from_json(await self.body(), cache_strings="none")
        except ValueError as error:
            raise HTTPException(400, f"The body is not valid JSON: {error}.") from error


class JsonRoute(APIRoute):
    """A route whose requests are read that way."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            return await handle(_JsonRequest(request.scope, request.receive))

        return handler
