"""Named factories, our own and those of installed plugins, found by entry point and imported when first used."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar, cast

from framework.errors import NotFound, OperatorError

T = TypeVar("T")


class Registry(Generic[T]):
    """Objects by name. Entry points are listed without being imported; `get` imports the one that is asked for.

    Args:
        kind: what is registered, for messages ("tool").
        group: the entry-point group that plugins use ("lectern.tools").
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self._own: dict[str, T] = {}

    @cached_property
    def _plugins(self) -> dict[str, list[EntryPoint]]:
        """Entry points by name; several of one name are a conflict, but only for who asks for that name."""
        found: dict[str, dict[str, EntryPoint]] = {}
        for point in entry_points(group=self.group):
            found.setdefault(point.name, {})[point.value] = point
        return {name: list(points.values()) for name, points in found.items()}

    def register(self, name: str, item: T) -> T:
        """Add or replace an item for this process; it goes before a plugin of the same name."""
        self._own[name] = item
        return item

    def names(self) -> list[str]:
        return sorted({*self._own, *self._plugins})

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: str) -> bool:
        return name in self._own or name in self._plugins

    def get(self, name: str) -> T:
        """The item of that name.

        Raises:
            NotFound: no such name; the message lists those that exist.
            OperatorError: the plugin that registers it can't be imported, or two register it.
        """
        if name in self._own:
            return self._own[name]
        if name not in self._plugins:
            raise NotFound(f"There is no {self.kind} {name!r}.", hint=f"Known: {', '.join(self.names()) or 'none'}.")
        point, *others = self._plugins[name]
        if others:
            places = " and ".join(sorted(found.value for found in (point, *others)))
            raise OperatorError(
                f"Two installed packages register the {self.kind} {name!r}: {places}.", hint="Uninstall one of them."
            )
        try:
            return cast(T, point.load())
        except (Exception, SystemExit) as error:  # a plugin module is foreign code
            problem = f"{type(error).__name__}: {error}"
            raise OperatorError(f"The {self.kind} {name!r} ({point.value}) can't be imported: {problem}") from error
