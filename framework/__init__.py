"""Lectern's foundation: messages, documents, models, retrieval, configuration.

Importing it checks that the sibling packages (`agents`, `tools`, ...) which Python would import are Lectern's own: the
names are common ones, and a script beside a folder `tools/` of its own would otherwise fail in puzzling ways.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

SIBLINGS = ("agents", "evals", "indexers", "server", "tools")


def shadowed() -> dict[str, str]:
    """Sibling packages that Python finds somewhere else than beside this one: name to place found."""
    home = Path(__file__).resolve().parent.parent
    found: dict[str, str] = {}
    for name in SIBLINGS:
        spec = find_spec(name)
        places = list(spec.submodule_search_locations or ()) if spec else []
        origin = spec.origin if spec and spec.origin else (places[0] if places else "not installed")
        if not any(Path(place).resolve() == home / name for place in places):
            found[name] = origin
    return found


def _refuse_shadowed() -> None:
    intruders = shadowed()
    if intruders:
        where = "; ".join(f"{name!r} is {place}" for name, place in intruders.items())
        raise ImportError(
            f"Another package hides a part of Lectern: {where}. Rename it, start Python in another folder, or install "
            "Lectern into an environment of its own."
        )


_refuse_shadowed()
