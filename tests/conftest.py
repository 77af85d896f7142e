"""Shared fixtures. The network is closed except for loopback; state lives in a temporary home."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pytest_socket import socket_allow_hosts

from framework.config import Settings
from framework.models.base import ChatModel, Embedder

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True)
def closed_network() -> None:
    """Only this machine can be reached."""
    socket_allow_hosts(["127.0.0.1", "::1", "localhost"], allow_unix_socket=True)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No configuration of the developer's own reaches a test."""
    for name in list(os.environ):
        if name.startswith("LECTERN_") and name not in ("LECTERN_CACHE", "LECTERN_DATA"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("LECTERN_LECTERN__HOME", str(tmp_path / "home"))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings whose home is a fresh temporary directory."""
    return Settings({"lectern": {"home": str(tmp_path / "home")}}, base=tmp_path)


@pytest.fixture
def nothing_ships(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As if no adapters came with Lectern: for tests that count those which are there."""
    monkeypatch.setattr("framework.models.shipped_adapters.SHIPPED", tmp_path / "nothing")


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    """The embedder that ships: all-MiniLM-L6-v2."""
    from framework.models.embedders import load_embedder

    return load_embedder()


@pytest.fixture(scope="session")
def chat_model() -> ChatModel:
    """The chat model that ships: SmolLM2-135M-Instruct."""
    from framework.models.chat import load_chat

    return load_chat()


@pytest.fixture(scope="session")
def data() -> Path:
    """The evaluation data's folder, named by LECTERN_DATA; the test is skipped where there is none."""
    folder = os.environ.get("LECTERN_DATA")
    if not folder or not (Path(folder) / "scifact").is_dir():
        pytest.skip("no evaluation data: set LECTERN_DATA")
    return Path(folder)
