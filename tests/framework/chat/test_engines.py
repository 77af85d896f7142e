"""How much memory keys and values get, and what the configuration refuses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from framework.config import Settings
from framework.errors import ConfigError
from framework.models.config import EngineConfig, ModelsConfig
from framework.models.engines import MB, MOST_ON_CPU, kv_blocks

GB = 1024 * MB


@dataclass
class Shape:
    """What is asked of a decoder before it has blocks: here a block of 16 tokens takes a megabyte."""

    context_length: int = 1600
    block_bytes: int = MB
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@pytest.mark.parametrize(
    ("free", "config", "blocks"),
    [
        (800 * MB, {}, 200),  # a quarter of what is free
        (300 * MB, {}, 100),  # but one whole context
        (100 * MB, {}, 50),  # where that takes no more than half
        (64 * GB, {}, MOST_ON_CPU // MB),
        (64 * GB, {"max_sequences": 2}, 200),  # two contexts need no more
        (64 * GB, {"kv_memory_mb": 3000}, 3000),  # what is configured holds
        (0, {}, 1),
    ],
)
def test_memory_for_keys_and_values(free: int, config: dict[str, Any], blocks: int) -> None:
    assert kv_blocks(Shape(), EngineConfig(**config), free) == blocks  # type: ignore[arg-type]  # a part of one


def test_on_a_gpu_it_is_half_of_what_is_free() -> None:
    decoder: Any = Shape(device=torch.device("cuda"))
    assert kv_blocks(decoder, EngineConfig(), 8 * GB) == 4096


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"buffer": 1}, "engine.buffer must be 2 or more, got 1"),
        ({"kv_memory_mb": 0}, "engine.kv_memory_mb"),
        ({"max_sequences": 600}, "engine.max_tokens_per_step must be 600 or more, got 512"),
    ],
)
def test_settings_that_can_t_be_are_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        EngineConfig(**values)


def test_the_section_is_read_from_a_file_and_the_environment(tmp_path: Any) -> None:
    file = tmp_path / "lectern.toml"
    file.write_text('[models]\nthreads = 2\n[models.engine]\ndtype = "int8"\nblock_size = 32\n', encoding="utf-8")
    engine = Settings.load(file, {}).section("models", ModelsConfig).engine
    assert (engine.dtype, engine.block_size, engine.max_sequences) == ("int8", 32, 64)
    file.write_text("[models.engine]\nblocksize = 32\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"models\.engine\.blocksize"):
        Settings.load(file, {}).section("models", ModelsConfig)
