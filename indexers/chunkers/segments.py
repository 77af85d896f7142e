"""Which stretches of a document are cut each for itself: its sections, or the whole of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from framework.documents import Document


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch between two headings. `headed`: it starts with the heading that ends its `path`."""

    start: int
    end: int
    path: tuple[str, ...] = ()
    headed: bool = False


Segmenter: TypeAlias = Callable[[Document], list[Segment]]


def whole(document: Document) -> list[Segment]:
    """One segment: headings are text like any other."""
    return [Segment(0, len(document.text))]


def by_heading(document: Document) -> list[Segment]:
    """A segment from each heading to the next one, of whatever level; a heading without text goes with the next."""
    sections = sorted(document.sections, key=lambda section: section.start)
    starts = [section.start for section in sections]
    found = [Segment(0, starts[0] if starts else len(document.text))]
    carried: int | None = None
    for section, end in zip(sections, [*starts, len(document.text)][1:], strict=True):
        start = section.start if carried is None else carried
        alone = "\n" not in document.text[section.start : end].strip()
        if alone and end < len(document.text):
            carried = start
            continue
        found.append(Segment(start, end, section.path, headed=True))
        carried = None
    return [segment for segment in found if document.text[segment.start : segment.end].strip()]


SEGMENTERS: dict[str, Segmenter] = {"headings": by_heading, "recursive": whole}
