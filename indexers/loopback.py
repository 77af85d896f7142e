"""The library of a home whose store a server holds: the same methods, over the server's loopback interface.

A request is `POST {url}/internal/{operation}` with JSON arguments. Lines of JSON come back, `{"progress": ...}` while
it goes and `{"result": ...}` or `{"error": ...}` at the end. `run_operation` is what the server calls for it.
"""

from __future__ import annotations

import asyncio
import http.client
import inspect
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import TypeAdapter

import framework.errors
from framework.bridge import run_sync
from framework.config import Settings
from framework.documents import Document, Hit
from framework.errors import CallerError, LecternError, NotFound, OperatorError
from framework.models.base import Embedder
from framework.retrieval.config import Mode, SearchConfig
from framework.retrieval.filters import Filter
from framework.retrieval.retriever import SearchResult
from framework.retrieval.store import Corpus
from indexers.report import CollectionStatus, DocumentInfo, IndexReport, OnProgress, Progress, VerifyReport
from indexers.wire import filter_from_wire, filter_to_wire

if TYPE_CHECKING:
    from indexers.library import Library

T = TypeVar("T")
FILE_NAME = "server.json"
CLOCK_SECONDS = 2.0  # a process's start is known no better than the time at which the machine came up


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """A running server, as its file in the home directory names it."""

    pid: int
    url: str
    token: str


def find_server(home: Path) -> ServerAddress | None:
    """The server that holds this home's store.

    The file of a process that is gone, or of this one, doesn't count, nor does one older than the process of its id.
    """
    try:
        path = home / FILE_NAME
        written = path.stat().st_mtime
        found = json.loads(path.read_text(encoding="utf-8"))
        address = ServerAddress(int(found["pid"]), str(found["url"]), str(found["token"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return address if address.pid != os.getpid() and _wrote(address.pid, written) else None


def _wrote(pid: int, written: float) -> bool:
    """Whether the process lives that had this id at that time."""
    import psutil

    try:
        process = psutil.Process(pid)
        started: float = process.create_time()
        return bool(process.status() != psutil.STATUS_ZOMBIE) and started <= written + CLOCK_SECONDS
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False
    except psutil.AccessDenied:
        return True  # alive, and another user's


def refuses(address: ServerAddress) -> bool:
    """Whether nothing listens at the address, although the process lives that the file names."""
    place = urlsplit(address.url)
    try:
        with socket.create_connection((place.hostname or "127.0.0.1", place.port or 80), timeout=10):
            return False
    except ConnectionRefusedError:
        return True
    except OSError:
        return False  # the first call says what is wrong


class LoopbackLibrary:
    """`Library` as seen from another process than the one that holds the store."""

    def __init__(self, address: ServerAddress, tenant: str, settings: Settings) -> None:
        self.address = address
        self.tenant = tenant
        self.home = settings.home
        self._settings = settings
        self._embedder: Embedder | None = None

    def __enter__(self) -> LoopbackLibrary:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is held between calls."""

    @property
    def embedder(self) -> Embedder:
        """The configured model, loaded in this process."""
        if self._embedder is None:
            from framework.models.config import ModelsConfig
            from framework.models.embedders import load_embedder

            self._embedder = load_embedder(None, self._settings.section("models", ModelsConfig))
        return self._embedder

    @property
    def corpus(self) -> Corpus:
        return RemoteCorpus(self)

    def retriever(self, collection: str, config: SearchConfig | None = None) -> RemoteRetriever:
        self.status(collection)  # raises where there is none
        return RemoteRetriever(self, collection, config or self._settings.section("search", SearchConfig))

    def index(
        self,
        paths: Sequence[Path | str],
        collection: str,
        *,
        dry_run: bool = False,
        rebuild: bool = False,
        progress: OnProgress | None = None,
    ) -> IndexReport:
        places = [os.path.abspath(path) for path in paths]  # noqa: PTH100  a linked folder keeps its name
        arguments = {"paths": places, "collection": collection, "dry_run": dry_run, "rebuild": rebuild}
        return self.call("index", arguments, IndexReport, progress)

    def index_documents(
        self,
        documents: Iterable[Document],
        collection: str,
        *,
        rebuild: bool = False,
        progress: OnProgress | None = None,
    ) -> IndexReport:
        given = [asdict(document) for document in documents]
        arguments = {"documents": given, "collection": collection, "rebuild": rebuild}
        return self.call("index_documents", arguments, IndexReport, progress)

    def collections(self) -> list[CollectionStatus]:
        return self.call("collections", {}, list[CollectionStatus])

    def status(self, collection: str) -> CollectionStatus:
        return self.call("status", {"collection": collection}, CollectionStatus)

    def documents(self, collection: str) -> list[DocumentInfo]:
        return self.call("documents", {"collection": collection}, list[DocumentInfo])

    def verify(self, collection: str, repair: bool = False) -> VerifyReport:
        return self.call("verify", {"collection": collection, "repair": repair}, VerifyReport)

    def remove_document(self, collection: str, document_id: str) -> None:
        self.call("remove_document", {"collection": collection, "document_id": document_id}, type(None))

    def remove_collection(self, collection: str) -> None:
        self.call("remove_collection", {"collection": collection}, type(None))

    def call(
        self, operation: str, arguments: Mapping[str, Any], kind: type[T], progress: OnProgress | None = None
    ) -> T:
        """Run one operation there and read its result as `kind`.

        Raises:
            LecternError: what the operation raised there.
            OperatorError: the server can't be reached or broke off.
        """
        body = json.dumps({"tenant": self.tenant, **arguments}).encode("ascii")
        try:
            for line in self._post(operation, body):
                if "progress" in line and progress is not None:
                    progress(_adapter(Progress).validate_python(line["progress"]))
                if "result" in line:
                    result: T = _adapter(kind).validate_python(line["result"])
                    return result
                if "error" in line:
                    raise _error(line["error"])
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise OperatorError(
                f"The server {self.address.url} (process {self.address.pid}) can't be used: {error}.",
                hint=f"If it no longer runs, remove {self.home / FILE_NAME}.",
            ) from error
        raise OperatorError(f"The server {self.address.url} broke off before the operation ended.")

    def _post(self, operation: str, body: bytes) -> Iterator[dict[str, Any]]:
        place = urlsplit(self.address.url)
        headers = {"Authorization": f"Bearer {self.address.token}", "Content-Type": "application/json"}
        with closing(http.client.HTTPConnection(place.hostname or "127.0.0.1", place.port, timeout=10)) as connection:
            connection.connect()
            connection.sock.settimeout(None)  # the server is there; an operation may take as long as it takes
            connection.request("POST", f"/internal/{operation}", body, headers)
            response = connection.getresponse()
            if response.status != 200:
                found = json.loads(response.read() or b"{}").get("error", {})
                raise _error({"message": f"The server answered {response.status}.", **found})
            for line in response:
                yield json.loads(line)


class RemoteCorpus:
    """`Corpus` over the loopback interface."""

    def __init__(self, library: LoopbackLibrary) -> None:
        self._library = library

    def hits(self, tenant: str, collection: str, ids: Sequence[str]) -> dict[str, Hit]:
        arguments = {"tenant": tenant, "collection": collection, "ids": list(ids)}
        found = self._library.call("hits", arguments, list[Hit])
        return {hit.id: hit for hit in found}

    def document(self, tenant: str, collection: str, document_id: str, version: str | None = None) -> Document:
        arguments = {"tenant": tenant, "collection": collection, "document_id": document_id, "version": version}
        return self._library.call("document", arguments, Document)


class RemoteRetriever:
    """`Retriever` over the loopback interface: the server embeds the query and ranks."""

    def __init__(self, library: LoopbackLibrary, collection: str, config: SearchConfig) -> None:
        self._library = library
        self.collection = collection
        self.config = config
        self.tenant = library.tenant
        self.corpus = library.corpus

    @property
    def embedder(self) -> Embedder:
        return self._library.embedder

    async def search(
        self,
        query: str,
        *,
        k: int | None = None,
        mode: Mode | None = None,
        mmr: float | None = None,
        filter: Filter | None = None,
        rerank: bool | None = None,
    ) -> SearchResult:
        arguments = {
            "query": query,
            "collection": self.collection,
            "config": asdict(self.config),
            "k": k,
            "mode": mode,
            "mmr": mmr,
            "filter": filter_to_wire(filter) if filter is not None else None,
            "rerank": rerank,
        }
        return await asyncio.to_thread(self._library.call, "search", arguments, SearchResult)


def run_operation(
    library: Library, operation: str, arguments: Mapping[str, Any], progress: OnProgress | None = None
) -> Any:
    """The server's side: run an operation on the library, as the tenant that the arguments name; JSON comes back.

    Raises:
        NotFound: no such operation.
        LecternError: what the operation raises.
    """
    values = dict(arguments)
    tenant = values.pop("tenant", library.tenant)
    operations = _operations(library.for_tenant(tenant), progress)
    if operation not in operations:
        raise NotFound(f"There is no operation {operation!r}.", hint=f"Known: {', '.join(sorted(operations))}.")
    try:
        inspect.signature(operations[operation]).bind(**values)
    except TypeError as error:
        raise CallerError(f"Wrong arguments for {operation!r}: {error}.") from error
    return _plain(operations[operation](**values))


def _operations(library: Library, progress: OnProgress | None) -> dict[str, Callable[..., Any]]:
    def search(
        query: str,
        collection: str,
        config: Any = None,
        k: int | None = None,
        mode: Mode | None = None,
        mmr: float | None = None,
        filter: Any = None,
        rerank: bool | None = None,
    ) -> SearchResult:
        chosen = _adapter(SearchConfig).validate_python(config) if config is not None else None
        wanted = filter_from_wire(filter) if filter is not None else None
        retriever = library.retriever(collection, chosen)
        return run_sync(retriever.search(query, k=k, mode=mode, mmr=mmr, filter=wanted, rerank=rerank))

    def index_documents(documents: Any, collection: str, rebuild: bool = False) -> IndexReport:
        given = _adapter(list[Document]).validate_python(documents)
        return library.index_documents(given, collection, rebuild=rebuild, progress=progress)

    return {
        "search": search,
        "index": partial(library.index, progress=progress),
        "index_documents": index_documents,
        "collections": library.collections,
        "status": library.status,
        "documents": library.documents,
        "verify": library.verify,
        "hits": lambda collection, ids: list(library.corpus.hits(library.tenant, collection, ids).values()),
        "document": partial(library.corpus.document, library.tenant),
        "remove_document": library.remove_document,
        "remove_collection": library.remove_collection,
    }


_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [asdict(item) for item in value]
    return value if value is None else asdict(value)


def _error(wire: Mapping[str, Any]) -> LecternError:
    kind = getattr(framework.errors, str(wire.get("type")), OperatorError)
    message, hint, field = wire.get("message", "The server failed."), wire.get("hint") or "", wire.get("field")
    if not (isinstance(kind, type) and issubclass(kind, LecternError)):
        kind = OperatorError
    return kind(message, hint=hint, field=field)
