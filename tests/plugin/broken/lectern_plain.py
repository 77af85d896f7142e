"""Entry points that bring something else than a tool of their own name."""

from __future__ import annotations

from tools import tool

number = 7


@tool(name="forecast")
def clashes() -> str:
    """Bear another plugin's name."""
    return ""


@tool
def calculator() -> str:
    """Bear a built-in tool's name."""
    return ""
