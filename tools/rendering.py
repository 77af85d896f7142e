"""Whatever a tool returns, as text that a model can read."""

from __future__ import annotations

from typing import Any

from pydantic_core import PydanticSerializationError, to_json

from tools.base import ToolResult

NOTHING = "Done. The tool returned nothing."


def render(value: Any) -> ToolResult:
    """Text stays text; models, dataclasses and containers become JSON; anything else its `str`."""
    if isinstance(value, ToolResult):
        return value if isinstance(value.content, str) else render(value.content)
    if value is None:
        return ToolResult(NOTHING)
    if isinstance(value, str):
        return ToolResult(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return ToolResult(_binary(bytes(value)))
    try:
        text = to_json(value, indent=None, bytes_mode="base64", inf_nan_mode="strings", fallback=str)
    except (PydanticSerializationError, ValueError, RecursionError):  # circular, or text that is not Unicode
        return ToolResult(str(value))
    return ToolResult(text.decode("utf-8"))


def _binary(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return f"The tool returned {len(value)} bytes that are not text."
