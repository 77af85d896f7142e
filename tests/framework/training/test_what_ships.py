"""The adapters that ship are served as they were trained: the parity gate lets them through in every precision."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.config import Settings
from framework.models.catalog import Catalog
from framework.models.shipped_adapters import SHIPPED, shipped_adapters
from framework.training.probes import Probes
from framework.training.publish import check

CHAT = [adapter for adapter, _ in shipped_adapters(SHIPPED, "default")]


def test_a_reader_and_a_caller_ship() -> None:
    assert {adapter.name for adapter in CHAT} == {"answers", "tools"}


@pytest.mark.parametrize("name", [adapter.name for adapter in CHAT])
def test_what_ships_passes_the_parity_gate(name: str, tmp_path: Path) -> None:
    settings = Settings({"lectern": {"home": str(tmp_path)}}, base=tmp_path)
    base = Catalog().resolve(next(adapter.base for adapter in CHAT if adapter.name == name))
    report = check(name, settings, probes=Probes.generated(base.path, count=4, length=48)).report
    assert report.passed, report.table()
    assert all(one.figures.effect > 0.9 for one in report.compared)
