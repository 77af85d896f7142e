from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from framework.config import Settings
from framework.errors import ConfigError
from framework.retrieval.config import SearchConfig


def test_the_section_is_read_from_settings(tmp_path: Path) -> None:
    settings = Settings({"search": {"mode": "lexical", "k": 3, "mmr": 0.5}}, base=tmp_path)
    assert settings.section("search", SearchConfig) == SearchConfig(mode="lexical", k=3, mmr=0.5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mode", "fuzzy"),
        ("k", 0),
        ("k", 1001),
        ("pool", 0),
        ("fusion", "sum"),
        ("rrf_k", 0.0),
        ("rrf_k", math.inf),
        ("dense_weight", -1.0),
        ("lexical_weight", math.nan),
        ("mmr", 1.5),
        ("mmr", math.nan),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"search.{key}"):
        Settings({"search": {key: value}}, base=tmp_path).section("search", SearchConfig)


def test_both_weights_zero_are_refused() -> None:
    with pytest.raises(ConfigError, match="lexical_weight"):
        SearchConfig(dense_weight=0, lexical_weight=0)


def test_what_commands_import_at_start_loads_nothing_heavy() -> None:
    code = (
        "import sys, framework.retrieval.config, framework.retrieval.qdrant, framework.retrieval.retriever\n"
        "print([name for name in ('torch', 'transformers', 'qdrant_edge', 'Stemmer') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
