"""PDF pages as text to read, through PDFium: lines become paragraphs, running heads go, bookmarks are headings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from framework.documents import Scalar, Section
from indexers.loaders.extracted import Extracted, Limits, Unreadable, nested
from indexers.loaders.text import CONTROL

SOFT_HYPHENS = re.compile("[\u00ad\ufffe\u0002]\r?\n?")  # PDFium marks a word that was broken at a line's end
ITEM = re.compile(r"(?:[-•●▪‣◦–*☐☒]|\(?(?:\d{1,3}|[a-z]|[ivx]+)[.)])\s")
SENTENCE_END = re.compile(r"[.!?:;。！？]['\"”’)\]]*$")
NO_TITLE = re.compile(
    r"untitled.*|[\W\d_]*|microsoft word.*|powerpoint.*|.*\.(?:docx?|od[tsp]|indd|tex|dvi|pdf|pptx?|xlsx?|qxd)",
    re.IGNORECASE,
)
HEAD_LINES = 2  # how many lines at the top and bottom of a page may be running heads
ROW_END = re.compile(r"(?:(?:^|\s)[$€£(]{0,2}\s?[\d.,]*\d%?\)?|\s[—–-]){2}$")  # two figures end a row of a table
APART_IN_PARAGRAPH = 1.45  # lines this many times the usual distance apart belong to two paragraphs,
APART_IN_SENTENCE = 2.5  # unless a sentence plainly goes on
SHORTEST_FULL_LINE = 25  # characters; what is shorter is a heading or a label
COLUMN_LINES, COLUMN_INDENT = 5, 40.0  # lines around, and points between their beginnings, that make a column
HALF_LINE = 0.5  # what is narrower is a heading, also before a name like iPhone
FULL_LINE = 0.8  # a line this wide, as a share of the page's widest, goes on in the next


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text with its place on the page, in points from the lower left; all zero where it is unknown."""

    text: str
    left: float
    right: float
    bottom: float
    height: float


def load(data: bytes, limits: Limits) -> Extracted:
    """A PDF file's text, page by page.

    Raises:
        Unreadable: it is encrypted, damaged, has too many pages, or its pages are images without text.
    """
    import pypdfium2 as pdfium

    try:
        pdf = pdfium.PdfDocument(data)
    except pdfium.PdfiumError as error:
        if "password" in str(error).lower():
            raise Unreadable("It is encrypted with a password.") from error
        raise Unreadable(f"It is no readable PDF: {error}") from error
    with closing(pdf):
        if len(pdf) > limits.pages:
            raise Unreadable(f"It has {len(pdf)} pages; {limits.pages} are allowed.")
        pages = _without_running_heads([_lines(pdf, number) for number in range(len(pdf))])
        text, starts = _joined(pages)
        if not text:
            raise Unreadable(f"It has no text on any of {len(pdf)} pages: perhaps they are scanned images.")
        title, metadata = _described(pdf)
        sections = _sections(list(pdf.get_toc(max_depth=6)), text, starts)
        return Extracted(text, "application/pdf", title, metadata, sections, starts)


def _lines(pdf: Any, number: int) -> list[Line]:
    """The lines of one page in reading order."""
    from pypdfium2 import PdfiumError

    try:
        with closing(pdf[number]) as page, closing(page.get_textpage()) as textpage:
            text = textpage.get_text_range()
            placed = textpage.count_chars() == len(text)
            lines, position = [], 0
            for raw in text.split("\r\n"):
                if shown := _clean(raw):
                    lines.append(_line(textpage, shown, position, len(raw)) if placed else Line(shown, 0, 0, 0, 0))
                position += len(raw) + 2
            return lines
    except PdfiumError as error:
        raise Unreadable(f"Page {number + 1} can't be read: {error}") from error


def _line(textpage: Any, text: str, position: int, length: int) -> Line:
    left, bottom, _, top = textpage.get_charbox(position, loose=True)
    _, last_bottom, right, last_top = textpage.get_charbox(position + length - 1, loose=True)
    return Line(text, left, right, min(bottom, last_bottom), max(top - bottom, last_top - last_bottom))


def _clean(raw: str) -> str:
    return " ".join(CONTROL.sub("", SOFT_HYPHENS.sub("", raw)).split())


def _without_running_heads(pages: list[list[Line]]) -> list[list[Line]]:
    """Drop what stands at the top or bottom of most pages, page numbers aside; what is the same on all stays once."""
    counts: Counter[str] = Counter()
    exact: Counter[str] = Counter()
    for lines in pages:
        counts.update({_numberless(line.text) for line in (*lines[:HEAD_LINES], *lines[-HEAD_LINES:])})
        exact.update({line.text for line in (*lines[:HEAD_LINES], *lines[-HEAD_LINES:])})
    running = {text for text, count in counts.items() if count >= 3 and count > len(pages) / 2}

    def kept(page: int, lines: list[Line]) -> list[Line]:
        edges = {*range(HEAD_LINES), *range(len(lines) - HEAD_LINES, len(lines))}
        drop = {i for i in edges if 0 <= i < len(lines) and _numberless(lines[i].text) in running}
        if page == 0:
            drop = {i for i in drop if exact[lines[i].text] == 1}
        return [line for i, line in enumerate(lines) if i not in drop]

    return [kept(page, lines) for page, lines in enumerate(pages)]


def _numberless(text: str) -> str:
    return re.sub(r"\d+", "#", text)


def _joined(pages: Sequence[list[Line]]) -> tuple[str, tuple[int, ...]]:
    """All text, and where each page starts. A sentence that goes on over a page's end is not broken there."""
    parts: list[str] = []
    starts: list[int] = []
    length = 0
    for lines in pages:
        body = "".join(_paragraphs(lines))
        if body and parts:
            goes_on = body[0].islower() and not SENTENCE_END.search(parts[-1])
            parts.append("\n" if goes_on else "\n\n")
            length += len(parts[-1])
        starts.append(length)
        if body:
            parts.append(body)
            length += len(body)
    return "".join(parts), tuple(starts)


def _paragraphs(lines: Sequence[Line]) -> Iterator[str]:
    """The lines with what separates them: a space inside a paragraph, a line end in a table, a blank line between."""
    pitch = _pitch(lines)
    for number, line in enumerate(lines):
        yield line.text
        if number + 1 == len(lines):
            return
        following, widest = lines[number + 1], _column_end(lines, number)
        apart = (line.bottom - following.bottom) / max(pitch, line.height) if pitch else 1.0
        if apart < APART_IN_SENTENCE and _goes_on(line, following, widest, apart < APART_IN_PARAGRAPH):
            yield " "
        else:
            yield "\n" if apart < APART_IN_PARAGRAPH else "\n\n"


def _pitch(lines: Sequence[Line]) -> float:
    """The usual distance from one line to the next."""
    drops = [a.bottom - b.bottom for a, b in pairwise(lines) if a.bottom - b.bottom > 1]
    return median(drops) if drops else 0.0


def _column_end(lines: Sequence[Line], number: int) -> float:
    """How far to the right the lines around this one reach that begin where it begins."""
    around = lines[max(number - COLUMN_LINES, 0) : number + COLUMN_LINES + 1]
    return max(line.right for line in around if abs(line.left - lines[number].left) < COLUMN_INDENT)


def _goes_on(line: Line, following: Line, widest: float, near: bool) -> bool:
    """Whether two lines belong to one running sentence rather than to a table, a list or a heading."""
    if ITEM.match(following.text) or ROW_END.search(line.text) or ROW_END.search(following.text) or not widest:
        return False
    share = (line.right - line.left) / max(widest - min(line.left, following.left), 1.0)
    if following.text[0].islower() or not near:
        return following.text[0].islower() and share > HALF_LINE and not SENTENCE_END.search(line.text)
    full = len(line.text) >= SHORTEST_FULL_LINE and share > FULL_LINE
    return full and not (SENTENCE_END.search(line.text) and line.right < 0.95 * widest)


def _described(pdf: Any) -> tuple[str, dict[str, Scalar]]:
    """The title, unless it is what a program put there, and author, subject and keywords."""
    found = {key: _clean(value) for key, value in pdf.get_metadata_dict().items()}
    title = "" if NO_TITLE.fullmatch(found.get("Title", "")) else found["Title"]
    metadata: dict[str, Scalar] = {
        key.lower(): found[key] for key in ("Author", "Subject", "Keywords") if found.get(key, "").strip(" ;,")
    }
    return title, metadata


def _sections(bookmarks: Sequence[Any], text: str, starts: Sequence[int]) -> tuple[Section, ...]:
    """Bookmarks as headings, where their title stands on the page that they point to."""
    found: list[tuple[int, str, int]] = []
    position = 0
    for bookmark in bookmarks:
        destination = bookmark.get_dest()
        page = destination.get_index() if destination else None
        title = _clean(bookmark.get_title())
        if page is None or page >= len(starts) or not title:
            continue
        end = starts[page + 1] if page + 1 < len(starts) else len(text)
        words = r"\s+".join(re.escape(word) for word in title.split())
        place = re.compile(words, re.IGNORECASE).search(text, max(position, starts[page]), end)
        if place:
            position = place.end()
            found.append((bookmark.level + 1, title, place.start()))
    return nested(found, len(text))
