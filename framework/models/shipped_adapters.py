"""Adapters that come with Lectern, for every tenant: folders `shipped/BASE/NAME` beside this module.

They are found by their content like any other. Nobody removes or changes one; a tenant's own adapter of the same name
goes before it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

from framework.models.named_adapter import NamedAdapter

SHIPPED: Final = Path(__file__).parent / "shipped"
WEIGHTS: Final = "adapter_model.safetensors"


def shipped_adapters(folder: Path, tenant: str) -> list[tuple[NamedAdapter, Path]]:
    """What ships in `folder`, as this tenant's: each with the folder of its files, by base and name."""
    return [
        (NamedAdapter(tenant, name, base, digest, size, added, parity="passed", origin="shipped"), path)
        for name, base, digest, size, added, path in _found(folder)
    ]


def find_shipped(folder: Path, name: str, tenant: str, base: str | None = None) -> tuple[NamedAdapter, Path] | None:
    """The one of that name, for this base where one is given."""
    found = (each for each in shipped_adapters(folder, tenant) if each[0].name == name)
    return next((each for each in found if base in (None, each[0].base)), None)


@cache
def _found(folder: Path) -> tuple[tuple[str, str, str, int, float, Path], ...]:
    """Read once a process: what ships does not change while it runs."""
    from framework.engine.lora import identify

    found = []
    for weights in sorted(folder.glob(f"*/*/{WEIGHTS}")):
        stat, place = weights.stat(), weights.parent
        found.append((place.name, place.parent.name, identify(place).digest, stat.st_size, stat.st_mtime, place))
    return tuple(found)
