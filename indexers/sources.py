"""The documents of files and folders, read without indexing them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from framework.documents import Document
from indexers.config import IndexConfig
from indexers.loaders.extracted import Limits, Unreadable
from indexers.loaders.process import LoaderProcess
from indexers.planner import plan
from indexers.report import Quarantined


def read_sources(paths: Sequence[Path], config: IndexConfig) -> Iterator[Document | Quarantined]:
    """Each document with the id that indexing would give it, or the reason why it can't be read.

    Raises:
        NotFound: a path does not exist.
    """
    megabytes = int(config.max_file_mb * 2**20)
    limits = Limits(megabytes, config.max_pages, config.load_seconds, config.load_memory_mb)
    with LoaderProcess(limits) as loader:
        for item in plan(paths, {}).to_read:
            try:
                if item.problem:
                    raise Unreadable(item.problem)
                found, _ = loader.load(Path(item.file.path))
            except Unreadable as error:
                yield Quarantined(item.document_id, str(error))
                continue
            title = found.title or PurePosixPath(item.document_id).stem
            yield Document(item.document_id, found.text, title, item.document_id, sections=found.sections)
