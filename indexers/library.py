"""The front door of indexing: a home directory with its manifest and store, opened for one tenant."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from framework.config import Settings
from framework.documents import Document
from framework.errors import CallerError, Conflict, NotFound, StoreCorrupt
from framework.models.base import Embedder, Reranker
from framework.retrieval.bm25 import VERSION
from framework.retrieval.checks import check_name
from framework.retrieval.config import SearchConfig
from framework.retrieval.store import Corpus, Space, VectorStore
from indexers.config import IndexConfig
from indexers.manifest import Manifest
from indexers.meter import Meter
from indexers.planner import Plan, plan, plan_documents
from indexers.points import settle
from indexers.report import CollectionStatus, DocumentInfo, IndexReport, OnProgress, Quarantined, VerifyReport
from indexers.rows import Collection, FileFacts, Known

if TYPE_CHECKING:
    from framework.retrieval.retriever import Retriever
    from indexers.loopback import LoopbackLibrary
    from indexers.pipeline import Pipeline, Source

MANIFEST = "manifest.sqlite"
STORE = "store"
# BM25 terms in a chunk of so many tokens, as measured over documentation and filings.
TERMS_PER_TOKEN = 0.5


def open_library(settings: Settings | None = None, tenant: str | None = None) -> Library | LoopbackLibrary:
    """The library for commands and agents: through the server where one holds the store, else opened here.

    Where nothing listens at a server's address, the store's own lock tells whether that server is alive after all.
    """
    from indexers.loopback import LoopbackLibrary, find_server, refuses

    settings = settings or Settings.load()
    server = find_server(settings.home)
    if server is None or refuses(server):
        return Library.open(settings, tenant)
    return LoopbackLibrary(server, tenant or settings.core.tenant, settings)


class Library:
    """Collections of one tenant: index documents into them, search them, check and mend them.

    Safe to use from several threads: searches go on while a run writes; a second run on the same collection is
    refused. Nothing heavy happens before it is needed: the model is loaded by the first call that embeds.

    Args:
        home: directory of the manifest and the store.
        store: where the vectors are.
        embedder: the model; None loads the configured one when it is first needed.
        tenant: whose collections.
        config: how documents are read and cut.
        settings: read for the embedder's and the search's sections; None takes their defaults.
    """

    def __init__(
        self,
        home: Path,
        store: VectorStore,
        embedder: Embedder | None = None,
        tenant: str = "default",
        config: IndexConfig | None = None,
        settings: Settings | None = None,
    ) -> None:
        check_name("tenant", tenant)
        self.home = home
        self.store = store
        self.tenant = tenant
        self.config = config or IndexConfig()
        self.manifest = Manifest(home / MANIFEST)
        self._settings = settings
        self._embedder = embedder
        self._rerankers: list[Reranker] = []  # one, once it is loaded; views for other tenants share the list
        self._loading = threading.Lock()
        self._running: set[tuple[str, str]] = set()

    @classmethod
    def open(cls, settings: Settings | None = None, tenant: str | None = None) -> Library:
        """The library that the configuration names; None reads lectern.toml and the environment."""
        from framework.retrieval.qdrant import EdgeStore

        settings = settings or Settings.load()
        config = settings.section("index", IndexConfig)
        store = EdgeStore(settings.home / STORE)
        return cls(settings.home, store, None, tenant or settings.core.tenant, config, settings)

    def __enter__(self) -> Library:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the store and the manifest; any later call is an error."""
        self.store.close()
        self.manifest.close()

    @property
    def embedder(self) -> Embedder:
        """The model that documents and queries are embedded with."""
        self.manifest.check_open()
        with self._loading:
            if self._embedder is None:
                from framework.models.config import ModelsConfig
                from framework.models.embedders import load_embedder

                models = self._settings.section("models", ModelsConfig) if self._settings else ModelsConfig()
                self._embedder = load_embedder(None, models)
            return self._embedder

    def reranker(self) -> Reranker:
        """The model that reranks, loaded by the first call."""
        self.manifest.check_open()
        with self._loading:
            if not self._rerankers:
                from framework.models.config import ModelsConfig
                from framework.models.rerankers import load_reranker

                models = self._settings.section("models", ModelsConfig) if self._settings else ModelsConfig()
                self._rerankers.append(load_reranker(None, models))
            return self._rerankers[0]

    @property
    def corpus(self) -> Corpus:
        """The stored documents, for checking hits and citations."""
        return self.manifest

    def retriever(self, collection: str, config: SearchConfig | None = None) -> Retriever:
        """What searches a collection.

        Raises:
            NotFound: the tenant has no such collection.
            StoreCorrupt: the store has lost it.
        """
        from framework.retrieval.retriever import Retriever

        self.manifest.check_open()
        self._check_stored(self.manifest.collection(self.tenant, collection))
        if config is None and self._settings is not None:
            config = self._settings.section("search", SearchConfig)
        config = config or SearchConfig()
        return Retriever(self.store, self.corpus, self.embedder, self.tenant, collection, config, self.reranker)

    # Indexing

    def index(
        self,
        paths: Sequence[Path | str],
        collection: str,
        *,
        dry_run: bool = False,
        rebuild: bool = False,
        progress: OnProgress | None = None,
    ) -> IndexReport:
        """Bring the collection to what the files at `paths` hold; documents from elsewhere stay as they are.

        A document's id is its root folder's name and the path below it. What was indexed from below `paths` and is no
        longer there leaves. Files that can't be read are quarantined, with the reason in the report.

        Args:
            dry_run: report what would be done, and do nothing.
            rebuild: cut and embed everything anew; the way to change the embedder or the chunker.
            progress: called at each step, in this thread.

        Raises:
            NotFound: a path does not exist.
            Conflict: the collection was made with another embedder or chunker; two files would be one document; or
                another run is at work on the collection.
        """
        from indexers.pipeline import Source

        if not paths:
            raise CallerError("There is no path to index.", field="paths")
        places = [Path(path) for path in paths]
        if dry_run:
            return self._dry_run(places, collection, rebuild)
        with self._run(collection), self._writing(collection, rebuild) as (pipeline, known):
            work = plan(places, known)
            sources = [Source(item.document_id, item.file, problem=item.problem) for item in work.to_read]
            return self._carry_out(pipeline, work, sources, known, progress)

    def index_documents(
        self,
        documents: Iterable[Document],
        collection: str,
        *,
        rebuild: bool = False,
        progress: OnProgress | None = None,
    ) -> IndexReport:
        """Add or replace documents that Python code made. Others in the collection stay; ids are the caller's."""
        from indexers.pipeline import Source

        given = list(documents)
        with self._run(collection), self._writing(collection, rebuild) as (pipeline, known):
            work = plan_documents(given, known)
            unchanged = work.unchanged
            sources = [Source(d.id, FileFacts(), d) for d in given if d.id not in unchanged]
            return self._carry_out(pipeline, work, sources, known, progress)

    def _carry_out(
        self,
        pipeline: Pipeline,
        work: Plan,
        sources: list[Source],
        known: Mapping[str, Known],
        progress: OnProgress | None,
    ) -> IndexReport:
        from indexers.pipeline import Source

        stored = [Source(d.id, known[d.id].file, d) for d in self.manifest.documents(pipeline.collection, work.stored)]
        everything = [*sources, *stored]
        weight = sum(s.file.size or (len(s.document.text) if s.document else 0) for s in everything)
        meter = Meter(len(everything), weight, progress)
        if moved := {id: file for id, file in work.unchanged.items() if known[id].file != file}:
            self.manifest.update_files(pipeline.collection, moved)
        tally = pipeline.run(everything, known, meter)
        pipeline.remove(work.deleted)
        indexed = set(tally.indexed)
        old = [Quarantined(k.document_id, k.reason, k.live) for k in work.quarantined]
        return IndexReport(
            collection=pipeline.collection.name,
            added=tuple(item for item in tally.indexed if not known.get(item) or not known[item].version),
            changed=tuple(item for item in tally.indexed if known.get(item) and known[item].version),
            deleted=tuple(id for id in work.deleted if known[id].version),
            moved=tuple(pair for pair in work.moved if pair[1] in indexed),
            unchanged=len(work.unchanged) + tally.same,
            empty=tuple(tally.empty),
            quarantined=tuple(sorted((*tally.quarantined, *old), key=lambda q: q.document_id)),
            skipped=work.skipped,
            chunks=tally.chunks,
            embedded=tally.embedded,
            reused=tally.chunks - tally.embedded,
            seconds=meter.seconds,
        )

    def _dry_run(self, paths: Sequence[Path], name: str, rebuild: bool) -> IndexReport:
        try:
            collection = self.manifest.collection(self.tenant, name)
            known = self.manifest.known(collection)
        except NotFound:
            known = {}
        else:
            if not rebuild:
                self._refuse_other(collection, self._space())
        if rebuild:
            known = {id: replace(old, live=False) for id, old in known.items()}
        work = plan(paths, known)
        unread = [Quarantined(item.document_id, item.problem) for item in work.to_read if item.problem]
        old = [Quarantined(k.document_id, k.reason, k.live) for k in work.quarantined]
        return IndexReport(
            collection=name,
            added=tuple(item.document_id for item in work.added),
            changed=(*(item.document_id for item in work.changed), *work.stored),
            deleted=tuple(id for id in work.deleted if known[id].version),
            moved=work.moved,
            unchanged=len(work.unchanged),
            quarantined=(*unread, *old),
            skipped=work.skipped,
            dry_run=True,
        )

    # Looking and removing

    def collections(self) -> list[CollectionStatus]:
        """All collections of the tenant, by name."""
        return [self.status(collection.name) for collection in self.manifest.collections(self.tenant)]

    def status(self, collection: str) -> CollectionStatus:
        """What a collection holds, and which files it could not take in."""
        found = self.manifest.collection(self.tenant, collection)
        known = self.manifest.known(found).values()
        return CollectionStatus(
            name=found.name,
            embedder=found.embedder_name,
            language=found.space.language,
            chunker=found.chunker,
            roots=tuple(sorted({k.file.root for k in known if k.file.root})),
            quarantined=tuple(Quarantined(k.document_id, k.reason, k.live) for k in known if k.reason),
            **self.manifest.count(found),
        )

    def documents(self, collection: str) -> list[DocumentInfo]:
        """The collection's documents, by id."""
        known = self.manifest.known(self.manifest.collection(self.tenant, collection)).values()
        return [DocumentInfo(k.document_id, k.version, k.live, k.file.path) for k in known if k.version]

    def verify(self, collection: str, repair: bool = False) -> VerifyReport:
        """Compare store and manifest, point by point; `repair` mends the store from the manifest's text."""
        from indexers.verify import verify

        with self._run(collection):
            found = self.manifest.collection(self.tenant, collection)
            return verify(self._pipeline(found) if repair else None, self.manifest, self.store, found)

    def remove_document(self, collection: str, document_id: str) -> None:
        """Take one document out of a collection. A file that is still there comes back with the next run.

        Raises:
            NotFound: no such collection or document.
            StoreCorrupt: the store has lost the collection.
        """
        with self._run(collection):
            found = self.manifest.collection(self.tenant, collection)
            self._check_stored(found)
            if document_id not in self.manifest.known(found):
                raise NotFound(
                    f"There is no document {document_id!r} in the collection {collection!r}.",
                    hint=f"List them with: lectern collections show {collection}",
                )
            self.manifest.publish(found, [], [document_id])
            settle(self.manifest, self.store, found)

    def remove_collection(self, collection: str) -> None:
        """Remove a collection with all its documents and points."""
        with self._run(collection):
            self.manifest.collection(self.tenant, collection)
            self.manifest.remove_collection(self.tenant, collection)
            self.store.drop(self.tenant, collection)

    def for_tenant(self, tenant: str) -> Library:
        """The same home for another tenant. Both views share store, manifest and model; closing either closes both."""
        check_name("tenant", tenant)
        if tenant == self.tenant:
            return self
        view = copy(self)
        view.tenant = tenant
        return view

    # One run at a time, on a store that fits

    @contextmanager
    def _run(self, collection: str) -> Iterator[None]:
        self.manifest.check_open()
        check_name("collection", collection)
        with self._loading:
            if (self.tenant, collection) in self._running:
                raise Conflict(
                    f"Another run is at work on the collection {collection!r}.", hint="Wait until it has ended."
                )
            self._running.add((self.tenant, collection))
        try:
            yield
        finally:
            with self._loading:
                self._running.discard((self.tenant, collection))

    @contextmanager
    def _writing(self, name: str, rebuild: bool) -> Iterator[tuple[Pipeline, dict[str, Known]]]:
        """A pipeline on a collection that has its space in manifest and store and no unsettled points."""
        space = self._space()
        try:
            collection = self.manifest.collection(self.tenant, name)
        except NotFound:
            self.store.drop(self.tenant, name)  # what a removal that was cut short has left
            collection = self._fresh(name, space)
        else:
            if rebuild:
                collection = self._fresh(name, space)
            else:
                self._refuse_other(collection, space)
        if not self._has_space(collection):
            collection = self._fresh(name, space)
        settle(self.manifest, self.store, collection)
        yield self._pipeline(collection), self.manifest.known(collection)

    def _fresh(self, name: str, space: Space) -> Collection:
        """An empty space, in the manifest first: whatever is cut short from here on, the next run brings back."""
        made = self.manifest.create_collection(
            self.tenant, name, space, self.embedder.info.name, self.config.fingerprint
        )
        self.store.drop(self.tenant, name)
        self.store.create(self.tenant, name, space)
        return made

    def _check_stored(self, collection: Collection) -> None:
        """Raises StoreCorrupt where the manifest has the collection and the store does not."""
        try:
            self.store.space(self.tenant, collection.name)
        except NotFound as error:
            raise StoreCorrupt(
                f"The store has lost the collection {collection.name!r}; the text of its documents is still there.",
                hint=f"Make its points again from that: lectern index verify -c {collection.name} --repair",
            ) from error

    def _has_space(self, collection: Collection) -> bool:
        try:
            return self.store.space(self.tenant, collection.name) == collection.space
        except NotFound:
            return False

    def _space(self) -> Space:
        info = self.embedder.info
        terms = self.config.chunk_tokens * TERMS_PER_TOKEN
        return Space(info.id, info.dimensions, self.config.language, terms, VERSION)

    def _refuse_other(self, collection: Collection, space: Space) -> None:
        """Raises Conflict where the collection has vectors or chunks that the present configuration would not make."""
        if collection.space == space and collection.chunker == self.config.fingerprint:
            return
        if collection.space.embedder != space.embedder:
            what = f"the embedder {collection.embedder_name}, not {self.embedder.info.name}, or another version of it"
        elif collection.chunker != self.config.fingerprint:
            what = f"the chunker {collection.chunker}, not {self.config.fingerprint}"
        else:
            what = f"{collection.space}, not {space}"
        raise Conflict(
            f"The collection {collection.name!r} was made with {what}.",
            hint=f"Go back to that configuration, or make it anew: lectern index PATH -c {collection.name} --rebuild",
            field="collection",
        )

    def _pipeline(self, collection: Collection) -> Pipeline:
        from indexers.pipeline import Pipeline

        return Pipeline(self.manifest, self.store, self.embedder, self.config, collection)
