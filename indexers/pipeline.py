"""From a plan to a searchable collection: read, cut, embed, write, make live. The order of writes is what survives
a crash: points are announced in the manifest, written and flushed, and only then made live there in one transaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeAlias, TypeVar

from framework.documents import Chunk, Document, Scalar, point_id
from framework.models.base import Embedder, Vectors
from framework.retrieval.bm25 import Analyzer
from framework.retrieval.store import Point, VectorStore
from indexers.chunkers.chunker import Chunker
from indexers.config import IndexConfig
from indexers.loaders.extracted import Extracted, Limits, Unreadable
from indexers.loaders.process import LoaderProcess
from indexers.manifest import Manifest
from indexers.meter import Meter
from indexers.points import payload, settle, unfit
from indexers.prefetch import prefetched
from indexers.report import Quarantined
from indexers.rows import Collection, FileFacts, Indexed, Known

T = TypeVar("T")
AHEAD = 32  # documents read and cut while the embedder works
EMBEDDED_TOGETHER = 64  # texts between two steps of the progress bar


@dataclass(frozen=True, slots=True)
class Source:
    """A document to take in: read from a file, or at hand."""

    document_id: str
    file: FileFacts
    document: Document | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    source: Source
    reason: str


@dataclass(frozen=True, slots=True)
class Same:
    """A file that reads as the version that is live already."""

    document_id: str
    file: FileFacts


Prepared: TypeAlias = Indexed | Same | Failed


@dataclass(slots=True)
class Tally:
    """What a run did so far."""

    indexed: list[str] = field(default_factory=list)
    same: int = 0
    empty: list[str] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    chunks: int = 0
    embedded: int = 0


class Pipeline:
    """Writes one collection. One run at a time."""

    def __init__(
        self, manifest: Manifest, store: VectorStore, embedder: Embedder, config: IndexConfig, collection: Collection
    ) -> None:
        self.manifest = manifest
        self.store = store
        self.embedder = embedder
        self.config = config
        self.collection = collection
        self._place = (collection.tenant, collection.name)
        self._analyzer = Analyzer(collection.space.language, collection.space.average_length)
        self._chunker = Chunker(embedder, config)

    def run(self, sources: Sequence[Source], known: Mapping[str, Known], meter: Meter) -> Tally:
        """Take the sources in, batch by batch; each batch is live when the next one starts."""
        tally = Tally()
        with closing(prefetched(self._prepared(sources, known), AHEAD)) as prepared:
            while batch := self._batch(prepared):
                self._write(batch, known, tally, meter)
        return tally

    def remove(self, document_ids: Sequence[str]) -> None:
        """Take documents out: first from the manifest, so that no search shows them, then from the store."""
        if document_ids:
            self.manifest.publish(self.collection, [], document_ids)
            settle(self.manifest, self.store, self.collection)

    # Reading and cutting, in the thread that works ahead

    def _prepared(self, sources: Sequence[Source], known: Mapping[str, Known]) -> Iterator[Prepared]:
        limits = Limits(
            int(self.config.max_file_mb * 2**20),
            self.config.max_pages,
            self.config.load_seconds,
            self.config.load_memory_mb,
        )
        with LoaderProcess(limits) as loader:
            for source in sources:
                try:
                    document, file = self._document(source, loader)
                    old = known.get(source.document_id)
                    if old and old.live and old.version == document.version:
                        yield Same(source.document_id, file)
                    else:
                        yield self._indexed(document, file)
                except Unreadable as error:
                    yield Failed(source, str(error))

    def _document(self, source: Source, loader: LoaderProcess) -> tuple[Document, FileFacts]:
        if source.problem:
            raise Unreadable(source.problem)
        if source.document is not None:
            return source.document, source.file
        if source.file.size > loader.limits.bytes:
            raise Unreadable(f"It has {source.file.size / 2**20:.1f} MB; {self.config.max_file_mb:g} are allowed.")
        extracted, hash = loader.load(Path(source.file.path))
        facts = source.file
        file = FileFacts(facts.root, facts.path, facts.size, facts.mtime_ns, hash)
        return _document(source.document_id, extracted), file

    def _indexed(self, document: Document, file: FileFacts) -> Indexed:
        if problem := unfit(document):
            raise Unreadable(problem)
        chunks = self._chunker.chunk(document)
        return Indexed(document, file, chunks, [point_id(*self._place, chunk) for chunk in chunks])

    # Embedding and writing, in the thread that called

    def _batch(self, prepared: Iterator[Prepared]) -> list[Prepared]:
        batch: list[Prepared] = []
        chunks = 0
        for item in prepared:
            batch.append(item)
            chunks += len(item.chunks) if isinstance(item, Indexed) else 0
            if chunks >= self.config.batch_chunks or len(batch) >= self.config.batch_chunks:
                break
        return batch

    def _write(self, batch: Sequence[Prepared], known: Mapping[str, Known], tally: Tally, meter: Meter) -> None:
        indexed = [item for item in batch if isinstance(item, Indexed)]
        self._publish(indexed, tally, meter)
        if same := {item.document_id: item.file for item in batch if isinstance(item, Same)}:
            self.manifest.update_files(self.collection, same)
            tally.same += len(same)
            meter.advance(documents=len(same), weight=sum(file.size for file in same.values()))
        for item in batch:
            if isinstance(item, Failed):
                source = item.source
                self.manifest.quarantine(self.collection, source.document_id, source.file, item.reason)
                old = known.get(source.document_id)
                tally.quarantined.append(Quarantined(source.document_id, item.reason, bool(old and old.live)))
                meter.advance(documents=1, weight=source.file.size)

    def _publish(self, indexed: Sequence[Indexed], tally: Tally, meter: Meter) -> None:
        if not indexed:
            return
        live = self.manifest.owners(self.collection, [id for item in indexed for id in item.ids]).keys()
        fresh = [
            (id, chunk, item.document)
            for item in indexed
            for id, chunk in zip(item.ids, item.chunks, strict=True)
            if id not in live
        ]
        weight = sum(_weight(item) for item in indexed)
        vectors = self.vectors([chunk for _, chunk, _ in fresh], tally, meter, weight)
        restated = self._restated(indexed, live)
        self.manifest.intend(self.collection, [*(id for id, _, _ in fresh), *restated])
        points = [self.point(id, chunk, document, vectors) for id, chunk, document in fresh]
        for part in _parts(points, 1000):
            self.store.upsert(*self._place, part)
        if restated:
            self.store.set_payload(*self._place, restated)
        self.store.flush(*self._place)
        if self.manifest.publish(self.collection, indexed):
            settle(self.manifest, self.store, self.collection)
        tally.indexed += [item.document.id for item in indexed]
        tally.empty += [item.document.id for item in indexed if not item.chunks]
        tally.chunks += sum(len(item.chunks) for item in indexed)
        meter.advance(documents=len(indexed), weight=0 if fresh else weight)

    def _restated(self, indexed: Sequence[Indexed], live: AbstractSet[str]) -> dict[str, dict[str, Scalar]]:
        """New payloads of points that stay, where title or metadata of their document changed."""
        new = {item.document.id: payload(item.document) for item in indexed}
        old = {d.id: payload(d) for d in self.manifest.documents(self.collection, new)} if live else {}
        changed = [item for item in indexed if old.get(item.document.id) != new[item.document.id]]
        return {id: new[item.document.id] for item in changed for id in item.ids if id in live}

    def point(self, id: str, chunk: Chunk, document: Document, vectors: Mapping[str, Vectors]) -> Point:
        return Point(id, vectors[chunk.hash], self._analyzer.document(chunk.embedded_text), payload(document))

    def vectors(self, chunks: Sequence[Chunk], tally: Tally, meter: Meter, weight: float = 0.0) -> dict[str, Vectors]:
        """Each chunk's vector by its hash: from the cache, or embedded, whole batches across documents."""
        texts = {chunk.hash: chunk.embedded_text for chunk in chunks}
        space = self.collection.space.embedder
        weight /= max(len(texts), 1)
        found = self.manifest.cached(space, list(texts))
        meter.advance(weight=weight * len(found))
        missing = sorted(texts.keys() - found.keys(), key=lambda hash: (len(texts[hash]), hash))
        for group in _parts(missing, self.config.batch_chunks):
            made: dict[str, Vectors] = {}
            for part in _parts(group, EMBEDDED_TOGETHER):
                made.update(zip(part, self.embedder.embed_documents([texts[hash] for hash in part]), strict=True))
                tally.embedded += len(part)
                meter.advance(chunks=len(part), weight=weight * len(part))
            self.manifest.cache(space, made, self.config.cached_vectors)
            found.update(made)
        return found


def _document(id: str, extracted: Extracted) -> Document:
    return Document(
        id,
        extracted.text,
        extracted.title or _named(PurePosixPath(id)),
        id,
        extracted.media_type,
        extracted.metadata,
        extracted.sections,
        extracted.page_starts,
    )


def _named(path: PurePosixPath) -> str:
    """A title for a document that says none: its file's name, or its folder's for an index page."""
    generic = path.stem.lower() in ("index", "_index", "readme") and path.parent.name
    return path.parent.name if generic else path.stem


def _weight(item: Indexed) -> int:
    return item.file.size or len(item.document.text)


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
