"""Points in Qdrant Edge: the Qdrant engine inside this process, one shard a collection.

Edge's calls hold the interpreter's lock, so one lock of ours costs no speed, and callers on an event loop use threads.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from framework.documents import Scalar, content_hash
from framework.errors import NotFound, OperatorError, StoreCorrupt, StoreLocked
from framework.models.base import Vectors
from framework.retrieval.checks import (
    DIGITS,
    best,
    check_count,
    check_ids,
    check_name,
    check_payloads,
    check_points,
    check_sparse,
    collection_not_found,
    space_conflict,
    unit_vector,
)
from framework.retrieval.edge_payload import ORIGINAL, TOKENS, decode, encode, number_path, translate
from framework.retrieval.filters import Filter
from framework.retrieval.lock import DirectoryLock
from framework.retrieval.store import Candidate, Point, Space, SparseVector

if TYPE_CHECKING:
    import qdrant_edge

FORMAT = 1
BATCH = 500
# Up to here a scan of all vectors takes under 10 ms and is exact; the graph that optimize() builds serves larger ones.
EXACT_BELOW = 100_000
# Edge maps its files into memory, and a disk that fills up under such a file kills the process: stop well before.
MIN_FREE = 128 * 2**20
# A range over any key works; the first numeric keys of a collection get an index each.
MAX_NUMBER_INDEXES = 32


@dataclass(slots=True)
class _Shard:
    space: Space
    edge: qdrant_edge.EdgeShard
    indexed: set[str] = field(default_factory=set)


class EdgeStore:
    """`VectorStore` below a directory. Opening costs nothing; the first access to points takes the directory's lock.

    Raises:
        StoreLocked: from the first access on, when another process has the directory.
        OperatorError: the disk is full or fails.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.RLock()
        self._holding = DirectoryLock(root)
        self._shards: dict[tuple[str, str], _Shard] = {}

    def create(self, tenant: str, collection: str, space: Space) -> None:
        check_name("tenant", tenant)
        check_name("collection", collection)
        with self._lock:
            with suppress(NotFound):
                present = self.space(tenant, collection)
                if present != space:
                    raise space_conflict(collection, present, space)
                return
            with _reporting(self.root):
                self._acquire()
                self._make(tenant, collection, space)

    def drop(self, tenant: str, collection: str) -> None:
        folder = self._folder(tenant, collection)
        with self._lock, _reporting(self.root):
            shard = self._shards.pop((tenant, collection), None)
            if not folder.exists():
                return
            self._acquire()
            if shard:
                shard.edge.close()
            # Renamed first: a crash leaves either the whole collection or none.
            removed = folder.with_suffix(".dropped")
            folder.rename(removed)
            shutil.rmtree(removed)

    def space(self, tenant: str, collection: str) -> Space:
        with self._lock:
            shard = self._shards.get((tenant, collection))
            return shard.space if shard else _read_space(self._folder(tenant, collection), collection)

    def upsert(self, tenant: str, collection: str, points: Sequence[Point]) -> None:
        from qdrant_edge import Point as EdgePoint
        from qdrant_edge import SparseVector as EdgeSparse
        from qdrant_edge import UpdateOperation

        vectors = check_points(points, self.space(tenant, collection).dimensions)
        stored = [
            EdgePoint(
                point.id,
                {"dense": vector.tolist(), "sparse": EdgeSparse(list(point.sparse.indices), list(point.sparse.values))},
                encode(point.payload),
            )
            for point, vector in zip(points, vectors, strict=True)
        ]
        with self._use(tenant, collection) as shard:
            self._index_numbers(shard, (point.payload for point in points))
            for start in range(0, len(stored), BATCH):
                _need_room(self.root)
                shard.edge.update(UpdateOperation.upsert_points(stored[start : start + BATCH]))

    def set_payload(self, tenant: str, collection: str, payloads: Mapping[str, Mapping[str, Scalar]]) -> None:
        from qdrant_edge import UpdateOperation

        check_payloads(payloads)
        with self._use(tenant, collection) as shard:
            self._index_numbers(shard, payloads.values())
            _need_room(self.root)
            for record in shard.edge.retrieve(list(payloads), with_payload=False, with_vector=False):
                payload = encode(payloads[str(record.id)])
                shard.edge.update(UpdateOperation.overwrite_payload([record.id], payload))

    def delete(self, tenant: str, collection: str, ids: Sequence[str]) -> None:
        from qdrant_edge import UpdateOperation

        check_ids(ids)
        with self._use(tenant, collection) as shard:
            if ids:
                shard.edge.update(UpdateOperation.delete_points(list(ids)))

    def flush(self, tenant: str, collection: str) -> None:
        with self._use(tenant, collection) as shard:
            shard.edge.flush()

    def dense(
        self,
        tenant: str,
        collection: str,
        vector: Vectors,
        n: int,
        filter: Filter | None = None,
        vectors: bool = False,
    ) -> list[Candidate]:
        """Exact up to 100,000 points; approximate (HNSW) above, once `optimize` has run."""
        from qdrant_edge import Query, SearchParams

        query = unit_vector(vector, self.space(tenant, collection).dimensions, "the query").tolist()
        check_count(n)
        with self._use(tenant, collection) as shard:
            exact = shard.edge.info().points_count <= EXACT_BELOW
            nearest = Query.Nearest(query, using="dense")
            return _query(shard.edge, nearest, SearchParams(exact=exact), n, filter, vectors)

    def lexical(
        self,
        tenant: str,
        collection: str,
        terms: SparseVector,
        n: int,
        filter: Filter | None = None,
        vectors: bool = False,
    ) -> list[Candidate]:
        from qdrant_edge import Filter as EdgeFilter
        from qdrant_edge import IdfParams, Query, SearchParams
        from qdrant_edge import SparseVector as EdgeSparse

        check_sparse(terms, "the query")
        check_count(n)
        with self._use(tenant, collection) as shard:
            nearest = Query.Nearest(EdgeSparse(list(terms.indices), list(terms.values)), using="sparse")
            # With a corpus named, even the one of all points, Edge counts live points alone; without, deleted ones too.
            params = SearchParams(idf=IdfParams(corpus=EdgeFilter()))
            return _query(shard.edge, nearest, params, n, filter, vectors)

    def vectors(self, tenant: str, collection: str, ids: Sequence[str]) -> dict[str, Vectors]:
        check_ids(ids)
        with self._use(tenant, collection) as shard:
            records = shard.edge.retrieve(list(ids), with_payload=False, with_vector=["dense"])
        return {str(record.id): _dense(record) for record in records}

    def payloads(self, tenant: str, collection: str) -> Iterator[tuple[str, Mapping[str, Scalar]]]:
        from qdrant_edge import ScrollRequest

        offset = None
        while True:
            with self._use(tenant, collection) as shard:
                request = ScrollRequest(offset=offset, limit=1000, with_payload=[ORIGINAL], with_vector=False)
                records, offset = shard.edge.scroll(request)
            for record in records:
                assert record.payload is not None
                yield str(record.id), decode(record.payload)
            if offset is None:
                return

    def count(self, tenant: str, collection: str) -> int:
        from qdrant_edge import CountRequest

        with self._use(tenant, collection) as shard:
            return shard.edge.count(CountRequest(exact=True))

    def optimize(self, tenant: str, collection: str) -> bool:
        """Merge segments, reclaim deleted points, and build the graph of a collection above 100,000 points.

        Stops every thread of the process for seconds: for a command after a large run, never inside a server.
        Returns whether there was anything to do.
        """
        with self._use(tenant, collection) as shard:
            return shard.edge.optimize()

    def close(self) -> None:
        """Close every shard and give the directory back; the store may be used again, which reopens it."""
        with self._lock, _reporting(self.root):
            while self._shards:
                self._shards.popitem()[1].edge.close()
            self._holding.release()

    def _folder(self, tenant: str, collection: str) -> Path:
        """A hash: no name leaves the root, and no two names meet on a file system that ignores case."""
        return self.root / content_hash(tenant, collection)

    def _acquire(self) -> None:
        self._holding.acquire()
        for removed in self.root.glob("*.dropped"):
            shutil.rmtree(removed)

    @contextmanager
    def _use(self, tenant: str, collection: str) -> Iterator[_Shard]:
        with self._lock, _reporting(self.root):
            if (tenant, collection) not in self._shards:
                self._shards[tenant, collection] = self._open(tenant, collection)
            yield self._shards[tenant, collection]

    def _open(self, tenant: str, collection: str) -> _Shard:
        from qdrant_edge import EdgeShard

        folder = self._folder(tenant, collection)
        _read_space(folder, collection)  # What is not there is not found, whoever holds the directory.
        self._acquire()
        _need_room(self.root)
        space = _read_space(folder, collection)
        edge = EdgeShard.load(str(folder / "shard"))
        return _Shard(space, edge, set(edge.info().payload_schema))

    def _make(self, tenant: str, collection: str, space: Space) -> None:
        """The shard, then the record that makes it count: what a crash leaves before that is cleared away."""
        from qdrant_edge import EdgeShard, PayloadSchemaType, UpdateOperation

        folder = self._folder(tenant, collection)
        _need_room(self.root)
        if folder.exists():
            shutil.rmtree(folder)
        (folder / "shard").mkdir(parents=True)
        edge = EdgeShard.create(str(folder / "shard"), _shape(space))
        edge.update(UpdateOperation.create_field_index(TOKENS, PayloadSchemaType.Keyword))
        edge.flush()
        _write_space(folder, tenant, collection, space)
        self._shards[tenant, collection] = _Shard(space, edge, {TOKENS})

    def _index_numbers(self, shard: _Shard, payloads: Any) -> None:
        from qdrant_edge import PayloadSchemaType, UpdateOperation

        numeric = {
            number_path(key)
            for payload in payloads
            for key, value in payload.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        for path in sorted(numeric - shard.indexed)[: MAX_NUMBER_INDEXES + 1 - len(shard.indexed)]:
            shard.edge.update(UpdateOperation.create_field_index(path, PayloadSchemaType.Float))
            shard.indexed.add(path)


def _shape(space: Space) -> qdrant_edge.EdgeConfig:
    from qdrant_edge import (
        Distance,
        EdgeConfig,
        EdgeOptimizersConfig,
        EdgeSparseVectorParams,
        EdgeVectorParams,
        Modifier,
    )

    kilobytes = EXACT_BELOW * space.dimensions * 4 // 1024
    return EdgeConfig(
        # Our vectors have unit length already: their product is the cosine, and what is stored is what was given.
        vectors={"dense": EdgeVectorParams(size=space.dimensions, distance=Distance.Dot)},
        sparse_vectors={"sparse": EdgeSparseVectorParams(modifier=Modifier.Idf)},
        optimizers=EdgeOptimizersConfig(indexing_threshold=kilobytes),
        wal_enabled=True,
    )


def _query(
    edge: qdrant_edge.EdgeShard,
    query: Any,
    params: qdrant_edge.SearchParams,
    n: int,
    filter: Filter | None,
    vectors: bool,
) -> list[Candidate]:
    from qdrant_edge import QueryRequest

    condition = None if filter is None else translate(filter)
    wanted = ["dense"] if vectors else False

    def found(limit: int) -> list[Candidate]:
        request = QueryRequest(limit=limit, query=query, params=params, filter=condition, with_vector=wanted)
        return [
            Candidate(str(point.id), round(point.score, DIGITS), _dense(point) if vectors else None)
            for point in edge.query(request)
        ]

    return best(found, n)


def _dense(record: Any) -> Vectors:
    return np.asarray(record.vector["dense"], dtype=np.float32)


def _read_space(folder: Path, collection: str) -> Space:
    path = folder / "space.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise StoreCorrupt(f"{path} has format {record['format']}; this version of Lectern reads {FORMAT}.")
        return Space(**record["space"])
    except FileNotFoundError:
        raise collection_not_found(collection) from None
    except OSError as error:
        raise OperatorError(f"{path} can't be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StoreCorrupt(
            f"{path} is damaged: {error}.",
            hint=f"Remove the folder {folder} and run: lectern index verify -c {collection} --repair",
        ) from error


def _write_space(folder: Path, tenant: str, collection: str, space: Space) -> None:
    record = {"format": FORMAT, "tenant": tenant, "collection": collection, "space": asdict(space)}
    draft = folder / "space.json.new"
    with draft.open("w", encoding="utf-8") as file:
        json.dump(record, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / "space.json")


def _need_room(root: Path) -> None:
    free = shutil.disk_usage(root).free
    if free < MIN_FREE:
        raise OperatorError(
            f"The disk of the store {root} is nearly full: {free >> 20} MiB are free, {MIN_FREE >> 20} are needed.",
            hint="Free some space and repeat the command; nothing that was written before is affected.",
        )


@contextmanager
def _reporting(root: Path) -> Iterator[None]:
    """What Edge and the file system raise, as an error for the operator."""
    try:
        yield
    except OSError as error:
        raise OperatorError(f"The store {root} can't be used: {error}.", hint=_ADVICE) from error
    except Exception as error:
        # Edge raises bare exceptions for everything; a subclass is one of ours or a defect.
        if type(error) is not Exception:
            raise
        if "WouldBlock" in str(error):
            raise StoreLocked(f"The store {root} is in use by another process.") from error
        raise OperatorError(f"The store {root} failed: {error}.", hint=_ADVICE) from error


_ADVICE = "Check the free space and the permissions of its disk; `lectern index verify` shows what is affected."
