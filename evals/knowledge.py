"""The collection that a target searches: the user's own, or the dataset's passages, indexed once and kept.

Passages are indexed in the user's cache directory, under a name made of their hash and of everything that decides their
chunks and vectors. A later run of any task over the same passages finds them there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from evals.dataset import Dataset, Passages
from framework.config import Settings, cache_dir
from framework.documents import content_hash
from framework.errors import ConfigError, OperatorError
from framework.retrieval.bm25 import VERSION
from framework.retrieval.config import SearchConfig
from indexers.config import IndexConfig
from indexers.library import Library
from indexers.report import IndexReport, Progress

if TYPE_CHECKING:
    from framework.retrieval.retriever import Retriever


@dataclass(frozen=True, slots=True)
class Knowledge:
    """An open library and one of its collections. `about` tells its content from another's."""

    library: Library
    collection: str
    about: Mapping[str, Any]

    def retriever(self, config: SearchConfig) -> Retriever:
        return self.library.retriever(self.collection, config)


@asynccontextmanager
async def open_knowledge(
    collection: str, dataset: Dataset, settings: Settings, progress: Callable[[str, int, int], None]
) -> AsyncIterator[Knowledge]:
    """Open the named collection, or index the dataset's passages; the library is closed at the end.

    Raises:
        ConfigError: neither a collection nor passages.
        NotFound: no such collection.
        OperatorError: a passage could not be indexed, so that no score would mean anything.
    """
    if collection:
        with await asyncio.to_thread(Library.open, settings) as library:
            yield Knowledge(library, collection, await asyncio.to_thread(_state, library, collection))
        return
    if dataset.passages is None:
        raise ConfigError(
            "There is nothing to search.", hint="Set dataset.passages or target.collection.", field="target.collection"
        )
    own = Settings({**settings.values, "lectern": {"home": str(cache_dir() / "evals")}}, settings.base, settings.path)
    with await asyncio.to_thread(Library.open, own) as library:
        about = await asyncio.to_thread(_identity, library, dataset.passages, own)
        # A folder's documents belong to the folder: the same ones elsewhere are another collection.
        places = [str(folder.resolve()) for folder in dataset.passages.folders]
        name = content_hash(*(str(value) for value in about.values()), *places)
        report = await asyncio.to_thread(_index, library, dataset.passages, name, progress)
        yield Knowledge(library, name, {**about, "empty": len(report.empty)})


def _identity(library: Library, passages: Passages, settings: Settings) -> dict[str, Any]:
    """Everything that decides chunks, vectors and terms."""
    config, info = settings.section("index", IndexConfig), library.embedder.info
    return {
        "passages": passages.hash,
        "embedder": info.name,
        "embedder_id": info.id,
        "chunks": config.fingerprint,
        "language": config.language,
        "terms": VERSION,
    }


def _index(library: Library, passages: Passages, name: str, progress: Callable[[str, int, int], None]) -> IndexReport:
    """Reconcile the collection with the passages; costs next to nothing when they are there."""

    def tell(step: Progress) -> None:
        progress("indexing", step.documents, step.documents_total)

    reports = []
    if passages.files:
        reports.append(library.index_documents(passages.documents(), name, progress=tell))
    if passages.folders:
        reports.append(library.index(passages.folders, name, progress=tell))
    for report in reports:
        if report.quarantined:
            first = report.quarantined[0]
            raise OperatorError(
                f"{len(report.quarantined)} passages could not be indexed, first {first.document_id}: {first.reason}",
                hint="Mend them or take them out of dataset.passages.",
            )
    return reports[-1]


def _state(library: Library, collection: str) -> dict[str, Any]:
    """What a collection of the user's holds now, as far as that can be told cheaply."""
    status = asdict(library.status(collection))
    kept = ("name", "documents", "chunks", "characters", "embedder", "language", "chunker")
    return {"collection": {key: status[key] for key in kept}}
