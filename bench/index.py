"""Indexing rate as a share of the bare embedder's; cost of a second run, unchanged and with 1% of the files edited."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.corpus import write_pages
from bench.harness import Figure, Spread, alternate, seconds


class Recorder:
    """An embedder that remembers what it was asked to embed."""

    def __init__(self, embedder: Any) -> None:
        self.embedder = embedder
        self.texts: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.embedder, name)

    def embed_documents(self, texts: Sequence[str]) -> Any:
        self.texts += texts
        return self.embedder.embed_documents(texts)


def run(quick: bool) -> list[Figure]:
    import torch

    from framework.models.embedders import load_embedder
    from framework.retrieval.qdrant import EdgeStore
    from indexers.library import Library

    torch.set_num_threads(2)
    embedder = load_embedder()
    again: list[float] = []
    edited: list[float] = []
    first: list[float] = []

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_pages(folder / "pages", 60 if quick else 300)
        changed = files[:: len(files) // max(1, len(files) // 100)][: max(1, len(files) // 100)]

        def library(used: Any, home: Path) -> Library:
            return Library(home, EdgeStore(home / "store"), used)

        recorder = Recorder(embedder)
        with library(recorder, folder / "recorded") as recorded:
            recorded.index([folder / "pages"], "pages")
        texts = recorder.texts
        print(f"{len(files)} files, {len(texts)} chunks, {len(changed)} files edited")

        def ours() -> float:
            with tempfile.TemporaryDirectory(dir=folder) as home, library(embedder, Path(home)) as fresh:
                first.append(seconds(lambda: fresh.index([folder / "pages"], "pages")))
                again.append(seconds(lambda: fresh.index([folder / "pages"], "pages")))
                for path in changed:
                    path.write_text(path.read_text(encoding="utf-8") + f"\nEdited {len(first)}.\n", encoding="utf-8")
                edited.append(seconds(lambda: fresh.index([folder / "pages"], "pages")))
            return len(texts) / first[-1]

        rates = alternate(
            ours, lambda: len(texts) / seconds(lambda: embedder.embed_documents(texts)), 2 if quick else 3
        )

    whole = Spread(tuple(first))
    return [
        Figure("index", rates[0], "chunks/s", rates[1], "the bare embedder", goal=0.9),
        Figure("index again, unchanged", Spread(tuple(again)), "s", whole, "the first run", goal=0.02, below=True),
        Figure(
            f"index again, {len(changed)} of {len(files)} edited", Spread(tuple(edited)), "s", whole, "the first run"
        ),
    ]
