"""Whether a store holds exactly what the manifest says, and how it is mended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from framework.documents import Scalar, point_id
from framework.errors import NotFound
from framework.retrieval.store import VectorStore
from indexers.manifest import Manifest
from indexers.meter import Meter
from indexers.pipeline import Pipeline, Source, Tally
from indexers.points import payload, settle
from indexers.report import VerifyReport
from indexers.rows import Collection

AT_ONCE = 512


def verify(pipeline: Pipeline | None, manifest: Manifest, store: VectorStore, collection: Collection) -> VerifyReport:
    """Compare point by point; given a pipeline, mend what differs from the manifest's own text."""
    damaged = _damaged(manifest, collection)
    found = _compare(manifest, store, collection)
    report = replace(found, damaged=tuple(damaged))
    if pipeline is None or (report.ok and not manifest.pending(collection)):
        return report
    if not _has_space(store, collection):
        store.drop(collection.tenant, collection.name)
        store.create(collection.tenant, collection.name, collection.space)
    settle(manifest, store, collection)
    _rewrite(pipeline, damaged)
    _mend(pipeline, _compare(manifest, store, collection))
    after = _compare(manifest, store, collection)
    return replace(report, damaged=tuple(_damaged(manifest, collection)), repaired=after.ok)


def _has_space(store: VectorStore, collection: Collection) -> bool:
    try:
        return store.space(collection.tenant, collection.name) == collection.space
    except NotFound:
        return False


def _compare(manifest: Manifest, store: VectorStore, collection: Collection) -> VerifyReport:
    expected = dict(_expected(manifest, collection))
    extra, stale = [], []
    points = 0
    if _has_space(store, collection):
        for id, found in store.payloads(collection.tenant, collection.name):
            points += 1
            wanted = expected.pop(id, None)
            if wanted is None:
                extra.append(id)
            elif wanted != dict(found):
                stale.append(id)
    return VerifyReport(collection.name, points, tuple(sorted(expected)), tuple(extra), tuple(stale))


def _expected(manifest: Manifest, collection: Collection) -> Mapping[str, Mapping[str, Scalar]]:
    """Live point ids with their payloads; the points of a document share one."""
    expected: dict[str, Mapping[str, Scalar]] = {}
    for document in manifest.documents(collection, live=True):
        shared = payload(document)
        expected.update((id, shared) for id, _ in manifest.chunks(collection, document.id))
    return expected


def _damaged(manifest: Manifest, collection: Collection) -> list[str]:
    """Documents whose chunks are not what their text says."""
    bad: list[str] = []
    for document in manifest.documents(collection, live=True):
        chunks = manifest.chunks(collection, document.id)
        place = (collection.tenant, collection.name)
        if any(c.text != document.text[c.start : c.end] or id != point_id(*place, c) for id, c in chunks):
            bad.append(document.id)
    return bad


def _rewrite(pipeline: Pipeline, damaged: list[str]) -> None:
    known = pipeline.manifest.known(pipeline.collection)
    documents = pipeline.manifest.documents(pipeline.collection, damaged)
    sources = [Source(d.id, known[d.id].file, d) for d in documents]
    pipeline.run(sources, {}, Meter(len(sources), 0))


def _mend(pipeline: Pipeline, found: VerifyReport) -> None:
    manifest, store, collection = pipeline.manifest, pipeline.store, pipeline.collection
    place = (collection.tenant, collection.name)
    missing, stale = set(found.missing), set(found.stale)
    store.delete(*place, found.extra)
    for document in manifest.documents(collection, live=True):
        chunks = manifest.chunks(collection, document.id)
        lost = [(id, chunk) for id, chunk in chunks if id in missing]
        vectors = pipeline.vectors([chunk for _, chunk in lost], Tally(), Meter(0, 0))
        if lost:
            store.upsert(*place, [pipeline.point(id, chunk, document, vectors) for id, chunk in lost])
        if old := {id: payload(document) for id, _ in chunks if id in stale}:
            store.set_payload(*place, old)
    store.flush(*place)
