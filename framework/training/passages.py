"""Documents cut into passages that can be asked about: whole paragraphs, within one section where there are any."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from framework.documents import Document, content_hash

MOST, LEAST = 180, 25  # words of a passage; a shorter one has little to ask about
PARAGRAPH = re.compile(r"\S.*?(?=\n[ \t]*\n|\Z)", re.DOTALL)
SENTENCE = re.compile(r"\S.*?(?:[.!?][\"')\]]*(?=\s)|\n|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Passage:
    """`text` is `document.text[start:start + len(text)]`."""

    document: str
    text: str
    start: int
    heading: str = ""

    @property
    def key(self) -> str:
        return content_hash(self.document, str(self.start), self.heading, self.text)


def passages_of(document: Document) -> Iterator[Passage]:
    """The passages of a document, in order. Headings alone and scraps below 25 words are left out."""
    for start, end, heading in _stretches(document):
        pieces = list(_pieces(document.text, start, end))
        first = 0
        while first < len(pieces):
            last, size = first, 0
            while last < len(pieces) and (size == 0 or size + pieces[last][2] <= MOST):
                size += pieces[last][2]
                last += 1
            begin, stop = pieces[first][0], pieces[last - 1][1]
            if size >= LEAST:
                yield Passage(document.id, document.text[begin:stop], begin, heading)
            first = last


def all_passages(documents: Iterable[Document]) -> Iterator[Passage]:
    for document in documents:
        yield from passages_of(document)


def _stretches(document: Document) -> Iterator[tuple[int, int, str]]:
    """Parts of the text that belong to one innermost section, with title and headings on one line."""
    bounds = {0, len(document.text)}
    for section in document.sections:
        bounds |= {section.start, section.end}
    edges = sorted(bound for bound in bounds if 0 <= bound <= len(document.text))
    for start, end in pairwise(edges):
        inside = [section for section in document.sections if section.start <= start and end <= section.end]
        path = max(inside, key=lambda section: len(section.path)).path if inside else ()
        yield start, end, " > ".join(dict.fromkeys(part for part in (document.title, *path) if part))


def _pieces(text: str, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Start, end and number of words of each paragraph; one that is too long comes as its sentences."""
    for paragraph in PARAGRAPH.finditer(text, start, end):
        if len(paragraph[0].split()) <= MOST:
            yield paragraph.start(), paragraph.start() + len(paragraph[0].rstrip()), len(paragraph[0].split())
            continue
        for sentence in SENTENCE.finditer(text, paragraph.start(), paragraph.end()):
            yield sentence.start(), sentence.start() + len(sentence[0].rstrip()), len(sentence[0].split())
