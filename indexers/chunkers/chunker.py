"""Documents to chunks that the embedder can hold whole, counted with its own tokenizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from framework.documents import Chunk, Document
from framework.models.base import Embedder
from indexers.chunkers.pieces import MAX_CHARACTERS_PER_TOKEN, Span, Tokens, pieces, trimmed
from indexers.chunkers.segments import SEGMENTERS, Segment
from indexers.config import IndexConfig

SEPARATOR = " > "
CONTEXT_SHARE = 4  # a context takes at most a quarter of a chunk


@dataclass(frozen=True, slots=True)
class _Draft:
    """A chunk before its final check: its span and the context it will carry."""

    span: Span
    context: str
    path: tuple[str, ...]


class Chunker:
    """Cuts documents by one configuration for one embedder. Each text is tokenized once for cutting, once to check."""

    def __init__(self, embedder: Embedder, config: IndexConfig) -> None:
        self.embedder = embedder
        self.config = config
        self.limit = min(config.chunk_tokens, embedder.info.max_tokens)
        self._special = embedder.count_tokens([""])[0]
        self._segments = SEGMENTERS[config.chunker]

    def chunk(self, document: Document) -> list[Chunk]:
        """The document's chunks in order.

        No chunk's `embedded_text` has more than `limit` tokens; together they cover all that is not blank.
        """
        tokens = Tokens(self.embedder.token_spans(document.text))
        drafts = [draft for segment in self._segments(document) for draft in self._cut(document, segment, tokens)]
        drafts = list(self._checked(document.text, drafts, tokens))
        seen: Counter[str] = Counter()
        chunks: list[Chunk] = []
        for ordinal, draft in enumerate(drafts):
            chunk = _made(document, draft, ordinal)
            chunks.append(replace(chunk, occurrence=seen[chunk.hash]))
            seen[chunk.hash] += 1
        return chunks

    def _cut(self, document: Document, segment: Segment, tokens: Tokens) -> Iterator[_Draft]:
        context = self._context(document.title, segment.path)
        title = "" if segment.path == (document.title,) else document.title
        above = self._context(title, segment.path[:-1]) if segment.headed else context
        budget = self.limit - self._special - max(self._tokens(context), self._tokens(above))
        span = (segment.start, segment.end)
        head = _heading_end(document.text, segment)
        room = budget - tokens.count((segment.start, head)) if head else budget
        atoms = pieces(document.text, span, tokens, room if room >= budget // 2 else budget)
        for first, chunk in enumerate(packed(atoms, tokens, budget, self.config.overlap_tokens)):
            yield _Draft(chunk, context if first else above, segment.path)  # the first one's text says its heading

    def _context(self, title: str, path: Sequence[str]) -> str:
        """Title and headings, outermost first, none twice in a row; shortened from the left where they are long."""
        if not self.config.context:
            return ""
        parts = [part for i, part in enumerate((title, *path)) if part and (i == 0 or part != (title, *path)[i - 1])]
        most = self.limit // CONTEXT_SHARE
        for first in range(len(parts)):
            context = SEPARATOR.join(["…", *parts[first:]] if first else parts)
            if self._tokens(context) <= most:
                return context
        return self._shortened(parts[-1], most) if parts else ""

    def _shortened(self, heading: str, most: int) -> str:
        starts = [start for start, _ in self.embedder.token_spans(heading)]
        for keep in range(min(most, len(starts) - 1), 0, -1):
            cut = f"{heading[: starts[keep]].rstrip()}…"
            if self._tokens(cut) <= most and len(cut) <= most * 20:
                return cut
        return ""

    def _tokens(self, text: str) -> int:
        return self.embedder.count_tokens([text])[0] - self._special if text else 0

    def _checked(self, text: str, drafts: Iterable[_Draft], tokens: Tokens) -> Iterator[_Draft]:
        """Halve what turns out too long: cut inside a word, the rest of it may take other tokens than before."""
        waiting = list(drafts)
        while waiting:
            counts = self.embedder.count_tokens([_embedded(text, draft) for draft in waiting])
            if max(counts) <= self.limit:
                yield from waiting
                return
            halves = [
                part
                for draft, count in zip(waiting, counts, strict=True)
                for part in ([draft] if count <= self.limit else _halved(text, draft, tokens))
            ]
            waiting = halves


def packed(atoms: Iterable[Span], tokens: Tokens, budget: int, overlap: int = 0) -> Iterator[Span]:
    """Neighbouring pieces joined while they fit; each chunk may begin with the pieces that ended the one before."""
    held: list[Span] = []

    def full(atom: Span) -> bool:
        span = (held[0][0], atom[1])
        return tokens.count(span) > budget or span[1] - span[0] > budget * MAX_CHARACTERS_PER_TOKEN

    for atom in atoms:
        if held and full(atom):
            yield held[0][0], held[-1][1]
            while held and (full(atom) or tokens.count((held[0][0], held[-1][1])) > overlap):
                held.pop(0)
        held.append(atom)
    if held:
        yield held[0][0], held[-1][1]


def _made(document: Document, draft: _Draft, ordinal: int) -> Chunk:
    start, end = draft.span
    text = document.text[start:end]
    page = document.page_at(start)
    return Chunk(document.id, text, start, end, ordinal, 0, draft.context, draft.path, page)


def _embedded(text: str, draft: _Draft) -> str:
    part = text[slice(*draft.span)]
    return f"{draft.context}\n{part}" if draft.context else part


def _halved(text: str, draft: _Draft, tokens: Tokens) -> list[_Draft]:
    start, end = draft.span
    borders = tokens.borders(draft.span) or [(start + end) // 2]
    middle = borders[len(borders) // 2]
    if not start < middle < end:
        return [replace(draft, context="")]
    return [replace(draft, span=span) for half in ((start, middle), (middle, end)) for span in trimmed(text, half)]


def _heading_end(text: str, segment: Segment) -> int:
    """Where the heading's line ends; 0 where the segment has none."""
    return max(text.find("\n", segment.start, segment.end), 0) if segment.headed else 0
