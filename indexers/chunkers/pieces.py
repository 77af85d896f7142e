"""Text cut where it may be cut: at blank lines, at sentences and lines, at words, at tokens, the coarsest that fits."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import TypeAlias

Span: TypeAlias = tuple[int, int]

LINE = re.compile(r"[^\n]+")
SENTENCE_END = re.compile(
    r"(?<=[.!?…])[\"'”’)\]]*\s+(?=[\"'“‘(\[]?[^\Wa-z_])"  # a stop, then what begins like a sentence
    r"|(?<=[。！？｡।۔؟])[”’」』）]*\s*"
    r"|\n(?=[ \t]*(?:[-*•–]|\d+[.)])[ \t])"  # the next list item
    r"|\n\s*\n"
)
WORD = re.compile(r"\S+")
MAX_CHARACTERS_PER_TOKEN = 20


class Tokens:
    """The embedder's tokens of one text, found once; counting any span of it is two binary searches."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self._starts = [start for start, _ in spans]

    def count(self, span: Span) -> int:
        """Tokens that start within the span."""
        return bisect_left(self._starts, span[1]) - bisect_left(self._starts, span[0])

    def borders(self, span: Span) -> list[int]:
        """Where tokens start within the span, without its own start."""
        inside = self._starts[bisect_left(self._starts, span[0] + 1) : bisect_left(self._starts, span[1])]
        return list(dict.fromkeys(inside))


def pieces(text: str, span: Span, tokens: Tokens, limit: int) -> Iterator[Span]:
    """Spans without blanks at their ends, each of at most `limit` tokens, that cover all that is not blank."""
    for block in blocks(text, span):
        if tokens.count(block) <= limit and block[1] - block[0] <= limit * MAX_CHARACTERS_PER_TOKEN:
            yield block
        else:
            yield from _units(text, block, tokens, limit)


def blocks(text: str, span: Span) -> Iterator[Span]:
    """Paragraphs: a blank line ends one, but not inside a code fence."""
    start: int | None = None
    fenced = False
    place, end = span
    while place < end:
        stop = text.find("\n", place, end)
        stop = end if stop < 0 else stop
        line = text[place:stop].strip()
        if line and start is None:
            start = place
        if line.startswith("```"):
            fenced = not fenced
        if not line and not fenced and start is not None:
            yield from trimmed(text, (start, place))
            start = None
        place = stop + 1
    if start is not None:
        yield from trimmed(text, (start, end))


def _units(text: str, block: Span, tokens: Tokens, limit: int) -> Iterator[Span]:
    for unit in lines_or_sentences(text, block):
        if tokens.count(unit) <= limit:
            yield from _short(text, unit, limit)
            continue
        for word in _matches(WORD, text, unit):
            if tokens.count(word) <= limit:
                yield from _short(text, word, limit)
            else:
                yield from _cut(text, word, tokens, limit)


def lines_or_sentences(text: str, block: Span) -> Iterator[Span]:
    """Code and tables go by line, prose by sentence and list item."""
    head = text[block[0] : min(block[1], block[0] + 2000)]
    if head.lstrip().startswith("```") or " | " in head.partition("\n")[0]:
        yield from _matches(LINE, text, block)
        return
    start = block[0]
    for end in SENTENCE_END.finditer(text, *block):
        if end.end() > start:
            yield from trimmed(text, (start, end.end()))
            start = end.end()
    yield from trimmed(text, (start, block[1]))


def _cut(text: str, word: Span, tokens: Tokens, limit: int) -> Iterator[Span]:
    """A word longer than the limit, cut at token borders."""
    borders = [word[0], *tokens.borders(word)][::limit]
    for start, end in zip(borders, [*borders[1:], word[1]], strict=True):
        yield from _short(text, (start, end), limit)


def _short(text: str, span: Span, limit: int) -> Iterator[Span]:
    """A span no longer than text can be in so many tokens: an unknown word counts as one, however long."""
    step = limit * MAX_CHARACTERS_PER_TOKEN
    for start in range(*span, step):
        yield from trimmed(text, (start, min(start + step, span[1])))


def _matches(pattern: re.Pattern[str], text: str, span: Span) -> Iterator[Span]:
    for found in pattern.finditer(text, *span):
        yield from trimmed(text, found.span())


def trimmed(text: str, span: Span) -> Iterator[Span]:
    part = text[slice(*span)]
    start = span[0] + len(part) - len(part.lstrip())
    end = span[0] + len(part.rstrip())
    if start < end:
        yield start, end
