"""Tools by name: built-in ones and those of installed plugins, all found by the entry-point group `lectern.tools`."""

from __future__ import annotations

from collections.abc import Iterable

from framework.errors import OperatorError
from framework.registry import Registry
from tools.base import Tool
from tools.toolset import Toolset

TOOLS: Registry[Tool] = Registry("tool", "lectern.tools")


def load_tools(names: Iterable[str]) -> Toolset:
    """The named tools; only their own modules are imported, so a broken plugin hurts nobody who does not name it.

    Raises:
        NotFound: no tool of that name; the message lists those that exist.
        OperatorError: the plugin that brings it can't be imported, or brings something that is not a tool.
        CallerError: two of the tools call themselves by one name.
    """
    return Toolset(_load(name) for name in names)


def _load(name: str) -> Tool:
    item = TOOLS.get(name)
    if not isinstance(item, Tool):
        raise OperatorError(
            f"The entry point {name!r} of lectern.tools gives something of type {type(item).__name__}.",
            hint="A tool is wanted: decorate the function with @tool.",
        )
    return item
