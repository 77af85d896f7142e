"""Citations: from a marker in the answer to a checked quotation.

A marker [3] names passage 3. It stays in the answer only if that passage stands in the stored document as it was read;
its quotation is the sentence of the passage that best supports what the answer says there.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from agents.sentences import split_sentences
from agents.state import Passage
from framework.documents import Citation, Document
from framework.errors import NotFound
from framework.models.base import Embedder
from framework.retrieval.store import Corpus

MARKER = re.compile(r"[^\S\n]*\[([1-9]\d{0,5}(?:\s*[,;]\s*[1-9]\d{0,5})*)\]")
UNFINISHED = re.compile(r"[^\S\n]*(?:\[(?:[\d\s,;]{0,60}))?$")
UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")  # kana, han, hangul
WORD = re.compile(rf"{UNSPACED.pattern}|\w+")


@dataclass(frozen=True, slots=True)
class Shelf:
    """A collection as citations are checked against it. `embedder` gives the one that it was made with, if known."""

    corpus: Corpus
    tenant: str
    collection: str
    embedder: Callable[[], Embedder | None] = lambda: None

    def document(self, passage: Passage) -> Document | None:
        """The very version that the passage was read from; None if it is no longer stored."""
        chunk = passage.hit.chunk
        try:
            return self.corpus.document(self.tenant, self.collection, chunk.document_id, passage.hit.version)
        except NotFound:
            return None


@dataclass(slots=True)
class Checker:
    """Which passages may be cited, each looked up once."""

    passages: Mapping[int, Passage]
    shelves: Mapping[str, Shelf]
    notices: list[str] = field(default_factory=list)
    _known: dict[int, bool] = field(default_factory=dict)

    async def stands(self, number: int) -> bool:
        """Whether passage `number` exists and its text is what the stored document has at its span."""
        if number not in self._known:
            self._known[number] = await self._look_up(number)
        return self._known[number]

    async def _look_up(self, number: int) -> bool:
        passage = self.passages.get(number)
        if passage is None:
            self.notices.append(f"The marker [{number}] names no passage and was removed.")
            return False
        document = await _stored(passage, self.shelves)
        chunk = passage.hit.chunk
        if document is None or document.text[chunk.start : chunk.end] != chunk.text:
            self.notices.append(
                f"The marker [{number}] was removed: {chunk.document_id} has changed since the passage was read."
            )
            return False
        return True


class MarkerStream:
    """Lets a streamed answer through, without its invalid markers. However it is cut into pieces, the same text comes.

    What could be the beginning of a marker is held back until it is known.
    """

    def __init__(self, checker: Checker) -> None:
        self._checker = checker
        self._held = ""

    async def feed(self, piece: str) -> str:
        """What is now certain."""
        text = self._held + piece
        unfinished = UNFINISHED.search(text)
        certain = text[: unfinished.start()] if unfinished else text
        self._held = text[len(certain) :]
        return await self._checked(certain)

    async def finish(self) -> str:
        """What was held back, when nothing follows."""
        rest, self._held = self._held, ""
        return rest

    async def _checked(self, text: str) -> str:
        pieces, end = [], 0
        for match in MARKER.finditer(text):
            numbers = [int(number) for number in re.findall(r"\d+", match[1])]
            valid = [number for number in numbers if await self._checker.stands(number)]
            space = match[0][: match[0].index("[")]
            pieces += [text[end : match.start()], space + "".join(f"[{number}]" for number in valid) if valid else ""]
            end = match.end()
        return "".join([*pieces, text[end:]])


async def cite(text: str, passages: Iterable[Passage], shelves: Mapping[str, Shelf]) -> tuple[Citation, ...]:
    """The citations of a text whose markers are all valid, one a number, in the order of first mention."""
    by_number = {passage.number: passage for passage in passages}
    found = []
    for number, sentences in statements(text).items():
        passage = by_number.get(number)
        if passage is not None:
            found.append(
                await citation(number, passage, best_sentence(" ".join(sentences), passage.hit.chunk.text), shelves)
            )
    return tuple(item for item in found if item is not None)


async def citation(
    number: int, passage: Passage, span: tuple[int, int], shelves: Mapping[str, Shelf]
) -> Citation | None:
    """A quotation of `span` (in the passage's own text), read from the stored document; None if it is not there."""
    chunk, hit = passage.hit.chunk, passage.hit
    document = await _stored(passage, shelves)
    start, end = chunk.start + span[0], chunk.start + span[1]
    if document is None or document.text[start:end] != chunk.text[span[0] : span[1]]:
        return None
    return Citation(
        number,
        chunk.document_id,
        hit.version,
        start,
        end,
        document.text[start:end],
        title=hit.title,
        source=hit.source,
        heading_path=chunk.heading_path,
        page=document.page_at(start) or chunk.page,
    )


def without_markers(text: str) -> str:
    """The text as it is kept for later turns, where the numbers mean nothing."""
    return MARKER.sub("", text)


async def _stored(passage: Passage, shelves: Mapping[str, Shelf]) -> Document | None:
    """The document version of a passage; None also where a resumed run's agent no longer has that collection."""
    shelf = shelves.get(passage.tool)
    return await asyncio.to_thread(shelf.document, passage) if shelf is not None else None


def statements(text: str) -> dict[int, list[str]]:
    """By marker, in the order of first mention, the sentences that it stands in or behind."""
    blank = MARKER.sub(lambda match: " " * len(match[0]), text)
    sentences = split_sentences(blank)
    said: dict[int, list[str]] = {}
    for match in MARKER.finditer(text):
        before = [sentence for sentence in sentences if sentence.start < match.start()]
        statement = blank[before[-1].start : before[-1].end] if before else ""
        for number in re.findall(r"\d+", match[1]):
            said.setdefault(int(number), []).append(statement)
    return said


def best_sentence(statement: str, text: str) -> tuple[int, int]:
    """The span, within a passage's text, of the sentence that shares most with the statement; all of it if none does.

    Cosine similarity of word counts; the first of equals.
    """
    wanted = Counter(word_list(statement))
    spans = [(sentence.start, sentence.end) for sentence in split_sentences(text)]
    scores = [_similarity(wanted, Counter(word_list(text[start:end]))) for start, end in spans]
    if not scores or max(scores) == 0:
        return (0, len(text))
    return spans[scores.index(max(scores))]


def sentence_with(answer: str, question: str, text: str, within: tuple[int, int] | None = None) -> tuple[int, int]:
    """The span, within a passage's text, of the sentence that holds an answer.

    Of several that hold it, the one that shares most with the question; where none does, the one that shares most with
    both, the answer counting twice. An answer that reaches over several sentences gives them all.

    Args:
        within: the part of the text to look in; None: all of it.
    """
    first, last = within or (0, len(text))
    sentences = [(s.start, s.end) for s in split_sentences(text) if first < s.end and s.start < last]
    spans = []
    for start, end in occurrences(answer, text, first, last):
        touched = [sentence for sentence in sentences if sentence[0] < end and start < sentence[1]]
        spans.append((min(start, touched[0][0]), max(end, touched[-1][1])) if touched else (start, end))
    if not spans:
        start, end = best_sentence(f"{question} {answer} {answer}", text[first:last])
        return first + start, first + end
    wanted = Counter(word_list(question))
    return max(spans, key=lambda span: _similarity(wanted, Counter(word_list(text[span[0] : span[1]]))))


def occurrences(answer: str, text: str, first: int, last: int) -> list[tuple[int, int]]:
    """Where an answer stands in a text, whatever its case and white space: as whole words where words are spaced."""
    words = r"\s+".join(re.escape(word) for word in answer.rstrip(" .").split())
    if not words:
        return []
    pattern = words if UNSPACED.search(answer) else rf"(?<!\w){words}(?!\w)"
    return [match.span() for match in re.compile(pattern, re.IGNORECASE).finditer(text, first, last)]


def word_list(text: str) -> Sequence[str]:
    """The words of a text, lower case; each character of scripts without spaces."""
    return WORD.findall(text.casefold())


def _similarity(left: Counter[str], right: Counter[str]) -> float:
    shared = sum(count * right[word] for word, count in left.items())
    if not shared:
        return 0.0
    return shared / math.sqrt(sum(n * n for n in left.values()) * sum(n * n for n in right.values()))
