"""Text into the units that can be quoted: sentences, list items, table rows and lines of code, with exact spans."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_FENCE = re.compile(r"[^\S\n]*(?:```|~~~)(.*)")
_FENCES = re.compile(f"^{_FENCE.pattern}", re.MULTILINE)
_BREAK = re.compile(r"\s*(#{1,6}\s.*|[-=*_]{3,}|\|?[\s:|-]*-{2,}[\s:|-]*\|?)?\s*")
_ROW = re.compile(r"\s*\|.*\||.*\S\s\|\s+\S")
_ITEM = re.compile(r"\s*(?:[-*+•]|\d{1,3}[.)])\s+(?=\S)")
_QUOTE = re.compile(r"\s*>\s?")
# A terminator with what closes behind it. Scripts without spaces between sentences end at the mark itself.
_END = re.compile(r"(?:(?P<tight>[。！？｡]+)|[.!?…؟۔।॥]+)[\"'”’»)\]」』）]*")
_WORD_BEFORE = re.compile(r"([^\W\d_](?:[\w.]*[^\W_])?)$")
_WORD_AFTER = re.compile(r"\s+[\"'“‘«(\[`*_]*(\w+|$)")
# Never the end of a sentence; of the abbreviations, only when a common first word follows.
_TITLES = """mr mrs ms dr prof rev gen col sgt capt lt gov sen rep hon st mt fr vs no nos fig figs eq eqs sec ch vol pp
ed eds trans approx ca cf e.g i.e al dept art op viz resp jan feb mar apr jun jul aug sep sept oct nov dec"""
_ABBREVIATIONS = "etc inc ltd co corp jr sr bros a.m p.m ph.d b.c a.d u.s u.k e.u u.n d.c"
_STARTERS = """The A An Then It Its He She They We I You This That These Those There In On At By For From With After
Before When While During Since As If But And However Although Also His Her Their Our Some Many Most All No"""
_NEVER, _SELDOM, _FIRST = (frozenset(words.split()) for words in (_TITLES, _ABBREVIATIONS, _STARTERS))


@dataclass(frozen=True, slots=True)
class Sentence:
    """A quotable unit: `text[start:end]`, without surrounding space and without a list item's marker."""

    start: int
    end: int


def split_sentences(text: str) -> list[Sentence]:
    """The units of a Markdown or plain text, in order. Headings, rules and fences are boundaries, not units."""
    found: list[Sentence] = []
    for start, end, prose in _blocks(text):
        ends = list(_ends(text, start, end)) if prose else []
        for left, right in zip([start, *ends], [*ends, end], strict=True):
            sentence = _trimmed(text, left, right)
            if sentence is not None:
                found.append(sentence)
    return found


def _blocks(text: str) -> Iterator[tuple[int, int, bool]]:
    """Spans of paragraphs and list items (prose), and of single rows and lines of code (not prose)."""
    block: int | None = None
    code, position = _starts_in_code(text), 0
    for line in text.splitlines(keepends=True):
        start, position = position, position + len(line)
        fence = _FENCE.match(line)
        gap = fence or (not code and _BREAK.fullmatch(line))
        single = not gap and (code or _ROW.match(line))
        item = None if gap or single else _ITEM.match(line)
        if gap or single or item:
            if block is not None:
                yield block, start, True
            block = start + item.end() if item else None
            if single:
                yield start, position, False
            code ^= fence is not None
        elif block is None:
            quote = _QUOTE.match(line)
            block = start + (quote.end() if quote else 0)
    if block is not None:
        yield block, len(text), True


def _starts_in_code(text: str) -> bool:
    """Whether a text that was cut out of a document begins inside a fenced block.

    Only an opening fence names a language; without one, a fence that no blank line precedes is a closing one.
    """
    fences = list(_FENCES.finditer(text))
    named = next((place for place, fence in enumerate(fences) if fence[1].strip()), None)
    if named is not None:
        return named % 2 == 1
    before = text[: fences[0].start()] if fences else ""
    return bool(before.strip()) and not before.endswith("\n\n")


def _ends(text: str, start: int, end: int) -> Iterator[int]:
    """Where sentences end inside a paragraph, its own end left out."""
    begin = start
    for match in _END.finditer(text, start, end):
        if match.end() < end and (match["tight"] or _is_end(text, begin, match, end)):
            begin = match.end()
            yield begin


def _is_end(text: str, begin: int, match: re.Match[str], end: int) -> bool:
    after = _WORD_AFTER.match(text, match.end(), end)
    if after is None or after[1][:1].islower():
        return False
    if not match[0].startswith(".") or match[0].startswith(".."):
        return True
    head = text[begin : match.start()].lstrip()
    word = _WORD_BEFORE.search(head)
    if head.isdigit() or (word and word[1].lower() in _NEVER):
        return False
    initial = word is not None and (len(word[1]) == 1 or word[1].lower() in _SELDOM or "." in word[1])
    return not initial or after[1] in _FIRST


def _trimmed(text: str, start: int, end: int) -> Sentence | None:
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return Sentence(start, end) if any(c.isalnum() for c in text[start:end]) else None
