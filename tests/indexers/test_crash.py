"""Killed at any point and run again, an index is the one that an uninterrupted run would have made.

Run as a script, this file is the process that dies: `python test_crash.py HOME DOCS STEP MODE`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from framework.retrieval.qdrant import EdgeStore
from framework.testing.fakes import HashEmbedder
from indexers.config import IndexConfig
from indexers.library import Library

WRITES = {"create", "drop", "upsert", "set_payload", "delete", "flush"}
STEPS = {"create_collection", "publish", "update_files", "quarantine", "intend", "settled", "cache"}


class Fatal:
    """Passes everything on; the process dies right before the n-th write, manifest and store counted together."""

    left = 0

    def __init__(self, inner: Any, names: set[str]) -> None:
        self._inner = inner
        self._names = names

    def __getattr__(self, name: str) -> Any:
        if name in self._names:
            Fatal.left -= 1
            if Fatal.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return getattr(self._inner, name)


def open_library(home: Path, step: int = 0) -> Library:
    """A library on the real embedded store; `step` 0 never dies."""
    Fatal.left = step
    config = IndexConfig(batch_chunks=4)
    library = Library(home, Fatal(EdgeStore(home / "store"), WRITES), HashEmbedder(), config=config)
    library.manifest = Fatal(library.manifest, STEPS)  # type: ignore[assignment]  # stands in for the manifest
    return library


def state(home: Path, docs: Path) -> Mapping[str, Any]:
    """Finish whatever is unfinished, prove the index right, and tell everything that it holds."""
    with open_library(home) as library:
        library.index([docs], "docs")
        report = library.verify("docs")
        assert report.ok
        assert not library.manifest.pending(library.manifest.collection("default", "docs"))
        points = dict(library.store.payloads("default", "docs"))
        vectors = library.store.vectors("default", "docs", sorted(points))
        hits = library.corpus.hits("default", "docs", sorted(points))
        assert hits.keys() == points.keys() == vectors.keys()
        return {
            id: (points[id], np.round(vectors[id], 5).tolist(), hits[id].chunk, hits[id].version)
            for id in sorted(points)
        }


def killed(home: Path, docs: Path, step: int, mode: str) -> bool:
    """Run the index in a child that dies at that step; False when it came to its end before."""
    command = [sys.executable, __file__, str(home), str(docs), str(step), mode]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, -9), done.stderr
    return done.returncode == -9


@pytest.fixture
def edited(tmp_path: Path, docs: Path) -> tuple[Path, Path]:
    """A home with the folder's first state indexed, and the folder in its second state."""
    home = tmp_path / "before"
    for number in range(4):
        (docs / f"page{number}.md").write_text(
            f"# Page {number}\n\nFirst text {number}.\n\n## More\n\nKept {number}.\n"
        )
    with open_library(home) as library:
        library.index([docs], "docs")
    (docs / "page0.md").write_text("# Page 0\n\nSecond text.\n\n## More\n\nKept 0.\n")
    (docs / "page1.md").unlink()
    (docs / "page2.md").rename(docs / "page9.md")
    (docs / "guide" / "refunds.md").write_text("---\ntitle: Refunds\nteam: sales\n---\n\n## Limits\n\nAt most once.\n")
    (docs / "blob.txt").write_bytes(bytes(range(256)))
    return home, docs


@pytest.mark.parametrize(("mode", "steps"), [("update", (1, 3, 5, 8, 10, 13)), ("rebuild", (2, 4, 7, 11))])
def test_killed_before_a_write_then_run_again(
    edited: tuple[Path, Path], tmp_path: Path, mode: str, steps: tuple[int, ...]
) -> None:
    before, docs = edited
    straight = tmp_path / "straight"
    shutil.copytree(before, straight)
    assert not killed(straight, docs, 0, mode)
    expected = state(straight, docs)
    for step in steps:
        home = tmp_path / f"home{step}"
        shutil.copytree(before, home)
        assert killed(home, docs, step, mode)
        assert state(home, docs) == expected, f"killed before write {step}"


def test_killed_and_the_file_is_gone_before_the_next_run(edited: tuple[Path, Path], tmp_path: Path) -> None:
    """What the killed run had written of a document that no longer exists leaves too."""
    home, docs = edited
    assert killed(home, docs, 5, "update")
    (docs / "page0.md").unlink()
    (docs / "page9.md").unlink()
    found = state(home, docs)
    assert {payload["document_id"] for payload, *_ in found.values()} == {
        "docs/guide/refunds.md",
        "docs/intro.md",
        "docs/notes.txt",
        "docs/page3.md",
    }


if __name__ == "__main__":
    with open_library(Path(sys.argv[1]), int(sys.argv[3])) as library:
        library.index([Path(sys.argv[2])], "docs", rebuild=sys.argv[4] == "rebuild")
