from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.retrieval.memory import MemoryStore
from framework.testing.fakes import HashEmbedder
from indexers.library import Library


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A small folder of documents."""
    folder = tmp_path / "docs"
    (folder / "guide").mkdir(parents=True)
    (folder / "intro.md").write_text("# Welcome\n\nLectern indexes documents.\n\n## Next\n\nRead the guide.\n")
    (folder / "guide" / "refunds.md").write_text(
        "---\ntitle: Refunds\nteam: billing\n---\n\n"
        "## Deadlines\n\nA refund takes ten days.\n\n## Limits\n\nAt most once.\n"
    )
    (folder / "notes.txt").write_text("Opening hours are nine to five.\n\nClosed on Sunday.\n")
    return folder


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    """A library in memory, with an embedder that needs no weights."""
    with Library(tmp_path / "home", MemoryStore(), HashEmbedder()) as opened:
        yield opened
