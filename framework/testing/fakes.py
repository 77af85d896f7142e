"""Small deterministic stand-ins, for tests that are not about models: no weights, no downloads, microseconds a text."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from framework.documents import Chunk, Document, Hit, point_id
from framework.errors import CallerError, NotFound
from framework.models.base import Embedder, EmbedderInfo, Vectors
from framework.retrieval.bm25 import Analyzer
from framework.retrieval.config import SearchConfig
from framework.retrieval.memory import MemoryStore
from framework.retrieval.retriever import Retriever
from framework.retrieval.store import Point, Space

_WORD = re.compile(r"\w+")
_SPECIAL = 2  # as if texts were wrapped in a start and an end token


class HashEmbedder:
    """A bag of words as a sum of pseudo-random directions: texts that share words are near each other.

    Implements `Embedder`. A token is a word; two special tokens are counted with each text.
    """

    def __init__(self, dimensions: int = 32, max_tokens: int = 256, languages: tuple[str, ...] = ()) -> None:
        self._info = EmbedderInfo(f"hash-{dimensions}", "hash", dimensions, max_tokens, languages)

    @property
    def info(self) -> EmbedderInfo:
        return self._info

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        for text, count in zip(texts, self.count_tokens(texts), strict=True):
            if count > self._info.max_tokens:
                raise CallerError(f"A text of {count} tokens exceeds {self._info.max_tokens}: {text[:40]!r}...")
        return np.stack([self._vector(text) for text in texts]) if texts else self._empty()

    def embed_query(self, text: str) -> Vectors:
        spans = self.token_spans(text)[: self._info.max_tokens - _SPECIAL]
        return self._vector(text[: spans[-1][1]] if spans else "")

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(self.token_spans(text)) + _SPECIAL for text in texts]

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        return [match.span() for match in _WORD.finditer(text)]

    def _vector(self, text: str) -> Vectors:
        words = _WORD.findall(text.lower()) or [""]
        total = np.sum([_direction(word, self._info.dimensions) for word in words], axis=0)
        return np.asarray(total / np.linalg.norm(total), dtype=np.float32)

    def _empty(self) -> Vectors:
        return np.zeros((0, self._info.dimensions), dtype=np.float32)


@lru_cache(maxsize=50_000)
def _direction(word: str, dimensions: int) -> Vectors:
    return np.random.default_rng(zlib.crc32(word.encode())).standard_normal(dimensions).astype(np.float32)


class MemoryCorpus:
    """`Corpus` over dictionaries; what is removed from `live` or `documents` is stale from then on."""

    def __init__(self) -> None:
        self.documents: dict[tuple[str, str, str], Document] = {}
        self.live: dict[tuple[str, str], dict[str, Hit]] = {}

    def add(self, tenant: str, collection: str, document: Document, chunk: Chunk) -> str:
        """Make a chunk of a document live; returns its point id."""
        self.documents[tenant, collection, document.id] = document
        id = point_id(tenant, collection, chunk)
        self.live.setdefault((tenant, collection), {})[id] = Hit(
            id,
            chunk,
            document.version,
            score=0.0,
            title=document.title,
            source=document.source,
            metadata=document.metadata,
        )
        return id

    def hits(self, tenant: str, collection: str, ids: Sequence[str]) -> dict[str, Hit]:
        live = self.live.get((tenant, collection), {})
        return {id: live[id] for id in ids if id in live}

    def document(self, tenant: str, collection: str, document_id: str, version: str | None = None) -> Document:
        document = self.documents.get((tenant, collection, document_id))
        if document is None or version not in (None, document.version):
            raise NotFound(f"There is no document {document_id!r} in {collection!r}.")
        return document


def memory_retriever(
    documents: Iterable[Document],
    embedder: Embedder | None = None,
    config: SearchConfig | None = None,
    *,
    tenant: str = "default",
    collection: str = "docs",
    language: str = "en",
) -> Retriever:
    """A working retriever over documents in memory, each paragraph a chunk; for tests of what stands above it."""
    embedder = embedder or HashEmbedder()
    store, corpus = MemoryStore(), MemoryCorpus()
    space = Space(embedder.info.id, embedder.info.dimensions, language)
    analyzer = Analyzer(language, space.average_length)
    store.create(tenant, collection, space)
    for document in documents:
        chunks = _paragraphs(document)
        vectors = embedder.embed_documents([chunk.embedded_text for chunk in chunks])
        payload = {**document.metadata, "document_id": document.id, "source": document.source}
        ids = [corpus.add(tenant, collection, document, chunk) for chunk in chunks]
        sparse = [analyzer.document(chunk.embedded_text) for chunk in chunks]
        points = [Point(*parts, payload) for parts in zip(ids, vectors, sparse, strict=True)]
        store.upsert(tenant, collection, points)
    return Retriever(store, corpus, embedder, tenant, collection, config or SearchConfig())


def _paragraphs(document: Document) -> list[Chunk]:
    chunks: list[Chunk] = []
    for ordinal, match in enumerate(re.finditer(r"\S(?:.|\n(?!\s*\n))*", document.text)):
        chunk = Chunk(document.id, match.group(), match.start(), match.end(), ordinal, context=document.title)
        equal = sum(chunk.hash == other.hash for other in chunks)
        chunks.append(replace(chunk, occurrence=equal, page=document.page_at(match.start())))
    return chunks
