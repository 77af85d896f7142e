"""The tools of one agent, by name. Sets combine into new sets; none is ever changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from framework.errors import CallerError
from framework.messages import ToolSpec
from tools.base import Tool, ToolContext, ToolResult
from tools.decorator import check_name


class Toolset:
    """Tools in the order given.

    Raises:
        CallerError: two tools have one name, or something is not a tool that can be called.
    """

    def __init__(self, tools: Iterable[Tool] = ()) -> None:
        self._tools: dict[str, Tool] = {}
        for item in tools:
            if not isinstance(item, Tool):
                raise CallerError(f"{item!r} is not a tool.", hint="Decorate the function with @tool.", field="tools")
            name = check_name(item.spec.name)
            if not (isinstance(item.timeout, int | float) and item.timeout > 0):
                raise CallerError(
                    f"The tool {name!r} has the timeout {item.timeout!r}; seconds above 0 are wanted.", field="tools"
                )
            if name in self._tools:
                raise CallerError(
                    f"Two tools are named {name!r}: {self._tools[name]!r} and {item!r}.",
                    hint="Rename one with @tool(name=...), or use toolset.prefixed(...).",
                    field="tools",
                )
            self._tools[name] = item

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tools)

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        return tuple(item.spec for item in self)

    def get(self, name: str) -> Tool | None:
        return self._tools.get(name)

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._tools.values())

    def __len__(self) -> int:
        return len(self._tools)

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    def __add__(self, other: Toolset) -> Toolset:
        return Toolset([*self, *other])

    def filtered(self, keep: Callable[[ToolSpec], bool]) -> Toolset:
        """Only the tools whose specification `keep` accepts."""
        return Toolset(item for item in self if keep(item.spec))

    def prefixed(self, prefix: str) -> Toolset:
        """The same tools under `prefix` + name, so that two sources of equal names can be combined."""
        return Toolset(_Renamed(item, prefix + item.spec.name) for item in self)

    def __repr__(self) -> str:
        return f"Toolset({', '.join(self.names)})"


@dataclass(frozen=True)
class _Renamed:
    """Another tool under another name."""

    inner: Tool
    name: str

    @property
    def spec(self) -> ToolSpec:
        return replace(self.inner.spec, name=self.name)

    @property
    def timeout(self) -> float:
        return self.inner.timeout

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        return await self.inner.call(arguments, context)
