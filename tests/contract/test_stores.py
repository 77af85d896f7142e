"""Every store that ships fulfils the contract."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.retrieval.memory import MemoryStore
from framework.retrieval.qdrant import EdgeStore
from framework.retrieval.store import VectorStore
from framework.testing.store_contract import StoreContract


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> VectorStore:
        return MemoryStore()


class TestEdgeStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[VectorStore]:
        store = EdgeStore(tmp_path / "store")
        yield store
        store.close()
