"""What every loader returns, and the builder that keeps headings and text in step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from framework.documents import Scalar, Section


class Unreadable(Exception):
    """A file that can't be taken in; the text is the reason that its quarantine gives."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one file may cost: bytes, pages, seconds, and MiB of memory."""

    bytes: int
    pages: int
    seconds: float
    memory_mb: int


@dataclass(frozen=True, slots=True)
class Extracted:
    """A file as text to read. Inline markup is gone; code stays in ``` fences, table rows are lines of "a | b"."""

    text: str
    media_type: str
    title: str = ""
    metadata: Mapping[str, Scalar] = field(default_factory=dict)
    sections: tuple[Section, ...] = ()
    page_starts: tuple[int, ...] = ()


class TextBuilder:
    """Blocks of text separated by blank lines, with the headings among them."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._length = 0
        self._headings: list[tuple[int, str, int]] = []

    def block(self, text: str) -> int:
        """Append a block and return where it starts; blank text adds nothing."""
        text = text.strip("\n").rstrip()
        if not text.strip():
            return self._length
        if self._parts:
            self._parts.append("\n\n")
            self._length += 2
        start = self._length
        self._parts.append(text)
        self._length += len(text)
        return start

    def heading(self, level: int, title: str) -> None:
        title = " ".join(title.split())
        if title:
            self._headings.append((level, title, self.block(title)))

    @property
    def text(self) -> str:
        return "".join(self._parts)

    @property
    def first_heading(self) -> str:
        return self._headings[0][1] if self._headings else ""

    def sections(self) -> tuple[Section, ...]:
        return nested(self._headings, self._length)


def nested(headings: Sequence[tuple[int, str, int]], length: int) -> tuple[Section, ...]:
    """Headings (level, title, start) as sections: each reaches to the next one of its level or above, or the end."""
    ends = [length] * len(headings)
    paths: list[tuple[str, ...]] = []
    open_: list[int] = []
    for position, (level, title, start) in enumerate(headings):
        while open_ and headings[open_[-1]][0] >= level:
            ends[open_.pop()] = start
        paths.append((*(paths[open_[-1]] if open_ else ()), title))
        open_.append(position)
    starts = [start for _, _, start in headings]
    return tuple(Section(*parts) for parts in zip(paths, starts, ends, strict=True))
