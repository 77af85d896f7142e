"""A chat model made on the spot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from framework.models.config import EngineConfig
from framework.models.constraints import Vocabulary
from framework.models.local_chat import LocalChat
from framework.testing.tiny_chat import TEMPLATE, write_tiny_chat


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_chat(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> LocalChat:
    """The random model, loaded once."""
    return LocalChat(tiny_folder, "tiny", config=EngineConfig(device="cpu", dtype="float32", kv_dtype="float32"))


@pytest.fixture(scope="session")
def vocabulary(tiny_folder: Path) -> Vocabulary:
    text = (tiny_folder / "tokenizer.json").read_text(encoding="utf-8")
    return Vocabulary(text, len(json.loads(text)["model"]["vocab"]), [1])


@pytest.fixture
def model_folder(tmp_path: Path) -> Callable[..., Path]:
    """`model_folder(template=..., seed=...)` makes a folder of the test's own."""
    return lambda template=TEMPLATE, seed=0: write_tiny_chat(tmp_path / "model", template, seed)
