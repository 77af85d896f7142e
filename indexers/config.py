"""Section `[index]`: how documents are read, cut and written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from framework.documents import content_hash

# Raised whenever loaders or chunkers give another text or other chunks for the same file.
FORMAT = 1


@dataclass(frozen=True, slots=True)
class IndexConfig:
    """How an index is made. What changes chunks (`fingerprint`) can't change under an existing collection.

    Attributes:
        chunker: "headings" cuts at headings first, "recursive" ignores them.
        chunk_tokens: most tokens of a chunk with its context, special tokens included; the embedder's own limit rules
            where it is lower.
        overlap_tokens: tokens that a chunk may repeat of the one before it, in whole sentences.
        context: put the title and the headings above a chunk in front of it.
        language: ISO 639-1 code for the lexical index's stemmer.
        max_file_mb: files above this size are quarantined unread.
        max_pages: PDF files with more pages are quarantined.
        load_seconds, load_memory_mb: what reading one file may cost; the reading process is killed beyond it.
        batch_chunks: chunks that are embedded and written together; a crash costs at most this much work.
        cached_vectors: vectors kept for text that comes back; the oldest leave first.
    """

    chunker: Literal["headings", "recursive"] = "headings"
    chunk_tokens: Annotated[int, Field(ge=16)] = 200
    overlap_tokens: Annotated[int, Field(ge=0)] = 0
    context: bool = True
    language: str = "en"
    max_file_mb: Annotated[float, Field(gt=0)] = 64.0
    max_pages: Annotated[int, Field(ge=1)] = 5000
    load_seconds: Annotated[float, Field(gt=0)] = 60.0
    load_memory_mb: Annotated[int, Field(ge=256)] = 2048
    batch_chunks: Annotated[int, Field(ge=1)] = 512
    cached_vectors: Annotated[int, Field(ge=0)] = 200_000

    @property
    def fingerprint(self) -> str:
        """Names everything that decides which chunks a file gives."""
        shape = (self.chunker, str(self.chunk_tokens), str(self.overlap_tokens), str(self.context), str(FORMAT))
        return f"{self.chunker}-{self.chunk_tokens}-{content_hash(*shape)[:8]}"
