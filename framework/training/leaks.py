"""Rows that give away what an evaluation asks: found before training, with the reason.

Held-out files are rows of ours, questions and passages as `lectern eval` reads them, any other JSON Lines whose values
hold texts, plain text, or a folder of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from framework.errors import CallerError
from framework.training.datasets import read_objects
from framework.training.row_parsing import parse_row
from framework.training.row_parts import normal, numbers, parts_of, words
from framework.training.rows import Kind, Row
from framework.training.shingles import Hashes, NearIndex, shingles

Reason: TypeAlias = Literal["document", "question", "near question", "text"]
LONG = 13  # words that two texts share by more than chance (Brown et al., 2020, appendix C)
LEAST = 6  # words of a question that counts when it is nearly equal
TELLING = 2  # words that tell what a question is about; "When did it take place?" gives nothing away
_ENGLISH = """
a an and any are as at be been by can could did do does for from had has have he her him his how i in is it its many
me much my not of on or place she should so take than that the their them then there these they this those to was we
were what when where which who whom whose why will with would you your
"""
FUNCTION_WORDS = frozenset(_ENGLISH.split())
NEAR = 0.8
COMMON = 10  # documents
QUESTION_KEYS = frozenset({"question", "questions", "query", "q", "standalone", "claim"})
ROW_KEYS: Mapping[str, Kind] = {"messages": "chat", "prompt": "preference", "positive": "pair"}
TEXT_SUFFIXES = (".md", ".txt", ".html", ".rst")


@dataclass(frozen=True, slots=True)
class HeldOut:
    """One thing that must not be trained on, with its place as "file:line"."""

    where: str
    document: str = ""
    questions: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Leak:
    """Why the row at `place` gives something away: `shared` is what it has in common with what stands at `where`."""

    place: int
    reason: Reason
    where: str
    shared: str


def held_out_row(row: Row, where: str) -> HeldOut:
    """A row of another split as something held out."""
    parts = parts_of(row)
    return HeldOut(where, row.document, parts.asked, (*parts.answered, *parts.read))


def read_held_out(path: Path) -> Iterator[HeldOut]:
    """What a file or a folder holds.

    Raises:
        CallerError: it is missing, damaged, of no known kind, or has nothing in it to compare with.
    """
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    read = [p for p in files if p.name.endswith((".jsonl", ".jsonl.gz", *TEXT_SUFFIXES))]
    if path.is_file() and not read:
        raise CallerError(f"{path} is none of .jsonl, .jsonl.gz, {', '.join(TEXT_SUFFIXES)}.")
    found = False
    for file in read:
        for item in _texts(file) if file.suffix in TEXT_SUFFIXES else _objects(file):
            found = True
            yield item
    if not found:
        raise CallerError(f"{path} has nothing in it to hold out.", hint="Name a file of rows, questions or texts.")


def find_leaks(rows: Sequence[Row], held_out: Iterable[HeldOut], *, long: int = LONG, near: float = NEAR) -> list[Leak]:
    """Every row that shares a document, a question or `long` words in a row with what is held out; one leak a reason.

    Questions that tell what they are about count when they are equal but for case and punctuation, or nearly equal with
    the same numbers (from 6 words). System messages and tool definitions are not compared: they are how a model is
    asked.
    """
    index = _Index(long, near)
    for item in held_out:
        index.add(item)
    formulas = _formulas(rows)
    return [leak for place, row in enumerate(rows) for leak in index.leaks(place, row, formulas)]


def _formulas(rows: Sequence[Row]) -> frozenset[str]:
    """Answers that rows of many documents give in the same words, such as how one declines: they give nothing away."""
    documents: dict[str, set[str]] = {}
    for row in rows:
        for text in parts_of(row).answered:
            documents.setdefault(text, set()).add(row.document)
    return frozenset(text for text, names in documents.items() if len(names) > COMMON)


@dataclass(slots=True)
class _Index:
    """What is held out, in the forms that rows are looked up in."""

    long: int
    near: float
    items: list[str] = field(default_factory=list)
    documents: dict[str, int] = field(default_factory=dict)
    questions: dict[str, int] = field(default_factory=dict)
    known: dict[str, tuple[int, str] | None] = field(default_factory=dict)
    added: list[tuple[int, Hashes]] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    alike: NearIndex | None = None
    grams: tuple[Hashes, Any] | None = None

    def add(self, item: HeldOut) -> None:
        number = len(self.items)
        self.items.append(item.where)
        if item.document:
            self.documents.setdefault(item.document, number)
        self.alike = self.alike or NearIndex(self.near)
        for question in item.questions:
            found = words(question)
            if sum(word not in FUNCTION_WORDS for word in found) < TELLING:
                continue
            self.questions.setdefault(" ".join(found), number)
            if len(found) >= LEAST:
                self.alike.keep(found, number, numbers(found))
        for text in item.texts:
            if text not in self.seen:
                self.seen.add(text)
                self.added.append((number, shingles(words(text), self.long)))

    def leaks(self, place: int, row: Row, formulas: frozenset[str]) -> Iterator[Leak]:
        if row.document in self.documents:
            yield Leak(place, "document", self.items[self.documents[row.document]], row.document)
        parts = parts_of(row)
        yield from self._question(place, parts.asked)
        for text in parts.all:
            shared = None if text in formulas else self._shared(text)
            if shared is not None:
                yield Leak(place, "text", self.items[shared[0]], shared[1])
                return

    def _question(self, place: int, asked: Sequence[str]) -> Iterator[Leak]:
        for question in asked:
            found = self.questions.get(normal(question))
            if found is not None:
                yield Leak(place, "question", self.items[found], question)
                return
        for question in asked:
            own = words(question)
            near = self.alike.find(own, numbers(own)) if self.alike and len(own) >= LEAST else None
            if near is not None:
                yield Leak(place, "near question", self.items[near], question)
                return

    def _shared(self, text: str) -> tuple[int, str] | None:
        """Whose words in a row a text has, and which; remembered, since rows on one passage share it."""
        if text not in self.known:
            grams, owners = self._grams()
            found = words(text)
            own = shingles(found, self.long)
            self.known[text] = None
            if len(grams) and len(own):
                places = np.minimum(np.searchsorted(grams, own), len(grams) - 1)
                hits = np.flatnonzero(grams[places] == own)
                if len(hits):
                    first = int(hits[0])
                    self.known[text] = (int(owners[places[first]]), " ".join(found[first : first + self.long]))
        return self.known[text]

    def _grams(self) -> tuple[Hashes, Any]:
        """Every run of words that is held out, sorted, with its owner beside it."""
        if self.grams is None:
            hashes = [grams for _, grams in self.added]
            owners = [np.full(len(grams), number, np.int64) for number, grams in self.added]
            joined = np.concatenate([*hashes, np.empty(0, np.uint64)])
            order = np.argsort(joined, kind="stable")
            self.grams = joined[order], np.concatenate([*owners, np.empty(0, np.int64)])[order]
        return self.grams


def _texts(path: Path) -> Iterator[HeldOut]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise CallerError(f"{path} can't be read: {error}.") from error
    if text.strip():
        yield HeldOut(str(path), texts=(text,))


def _objects(path: Path) -> Iterator[HeldOut]:
    for where, value in read_objects(path):
        kind = next((kind for key, kind in ROW_KEYS.items() if key in value), None)
        if kind is not None and isinstance(value.get("document"), str):
            yield held_out_row(parse_row(value, kind, where), where)
            continue
        questions, texts = _strings(value)
        document = value.get("document")
        yield HeldOut(where, document if isinstance(document, str) else "", tuple(questions), tuple(texts))


def _strings(value: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The questions of an object, and its other texts, at any depth. A BEIR query's `text` is short, and both."""
    questions: list[str] = []
    texts: list[str] = []
    waiting: list[tuple[str, Any]] = list(value.items())
    while waiting:
        key, item = waiting.pop()
        if isinstance(item, str):
            (questions if key in QUESTION_KEYS else texts).append(item)
            if key == "text" and len(item.split()) <= 40:
                questions.append(item)
        elif isinstance(item, dict):
            waiting += item.items()
        elif isinstance(item, list):
            waiting += [(key, part) for part in item]
    return questions, [*texts, *questions]
