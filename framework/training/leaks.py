"""Rows that give away what an evaluation asks: found before training, with the reason.

Held-out files are rows of ours, questions and passages as `lectern eval` reads them, any other JSON Lines whose values
hold texts, plain text, or a folder of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from framework.errors import CallerError
from framework.training.datasets import read_objects
from framework.training.row_parsing import parse_row
from framework.training.row_parts import normal, numbers, parts_of, take_apart, words
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
QUESTION_KEYS = frozenset({"question", "questions", "query", "q", "standalone", "claim", "unanswerable"})
QUESTION_KEYS |= {"prompt", "instruction", "input", "irrelevant"}
SHORT_KEYS = frozenset({"question", "answer", "system", "document", "provenance"})
ROW_KEYS: Mapping[str, Kind] = {"messages": "chat", "prompt": "preference", "positive": "pair"}
TEXT_SUFFIXES = (".md", ".txt", ".html", ".rst")


@dataclass(frozen=True, slots=True)
class HeldOut:
    """One thing that must not be trained on, with its place as "file:line"."""

    where: str
    document: str = ""
    questions: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()


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
    return HeldOut(where, row.document, parts.asked, parts.read, parts.answered)


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
    the same numbers (from 6 words). An answer that rows of many documents give, such as how one declines, may be a
    held-out row's answer too. System messages that rows of many documents have are not compared, nor are those of
    held-out rows and tool definitions: they are how a model is asked.
    """
    index = _Index(long, near)
    for item in held_out:
        index.add(item)
    formulas = _common((row.document, parts_of(row).answered) for row in rows)
    prompts = _common((row.document, parts_of(row).told) for row in rows)
    return [leak for place, row in enumerate(rows) for leak in index.leaks(place, row, formulas, prompts)]


def _common(said: Iterable[tuple[str, Sequence[str]]]) -> frozenset[str]:
    """Texts that many documents have in the same words."""
    documents: dict[str, set[str]] = {}
    for document, texts in said:
        for text in texts:
            documents.setdefault(text, set()).add(document)
    return frozenset(text for text, names in documents.items() if len(names) > COMMON)


@dataclass(slots=True)
class _Runs:
    """Runs of words that are held out, in the form that texts are looked up in."""

    long: int
    added: list[tuple[int, Hashes]] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    known: dict[str, tuple[int, str] | None] = field(default_factory=dict)
    grams: tuple[Hashes, Any] | None = None

    def add(self, text: str, number: int) -> None:
        if text not in self.seen:
            self.seen.add(text)
            self.added.append((number, shingles(words(text), self.long)))

    def find(self, text: str) -> tuple[int, str] | None:
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
        """Every run of words, sorted, with its owner beside it."""
        if self.grams is None:
            hashes = [grams for _, grams in self.added]
            owners = [np.full(len(grams), number, np.int64) for number, grams in self.added]
            joined = np.concatenate([*hashes, np.empty(0, np.uint64)])
            order = np.argsort(joined, kind="stable")
            self.grams = joined[order], np.concatenate([*owners, np.empty(0, np.int64)])[order]
        return self.grams


class _Index:
    """What is held out, in the forms that rows are looked up in."""

    def __init__(self, long: int, near: float) -> None:
        self.items: list[str] = []
        self.documents: dict[str, int] = {}
        self.questions: dict[str, int] = {}
        self.alike = NearIndex(near)
        self.askers: list[int] = []  # the item of each question in `alike`
        self.texts, self.answers = _Runs(long), _Runs(long)

    def add(self, item: HeldOut) -> None:
        number = len(self.items)
        self.items.append(item.where)
        if item.document:
            self.documents.setdefault(item.document, number)
        for question in item.questions:
            self._ask(words(question), number)
        for text in item.texts:
            self.texts.add(text, number)
        for text in item.answers:
            self.answers.add(text, number)

    def _ask(self, found: Sequence[str], number: int) -> None:
        whole = " ".join(found)
        if whole in self.questions or sum(word not in FUNCTION_WORDS for word in found) < TELLING:
            return
        self.questions[whole] = number
        if len(found) >= LEAST:
            self.alike.add(found, len(self.askers), numbers(found))
            self.askers.append(number)

    def leaks(self, place: int, row: Row, formulas: frozenset[str], prompts: frozenset[str]) -> Iterator[Leak]:
        if row.document in self.documents:
            yield Leak(place, "document", self.items[self.documents[row.document]], row.document)
        parts = parts_of(row)
        yield from self._question(place, parts.asked)
        for text in (*parts.all, *(text for text in parts.told if text not in prompts)):
            shared = self.texts.find(text) or (None if text in formulas else self.answers.find(text))
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
            near = self.alike.find(own, numbers(own)) if len(own) >= LEAST else None
            if near is not None:
                yield Leak(place, "near question", self.items[self.askers[near]], question)
                return


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
        document = value.get("document")
        yield replace(_strings(value, where), document=document if isinstance(document, str) else "")


def _strings(value: Mapping[str, Any], where: str) -> HeldOut:
    """The questions of an object, its answers where it is a short row or a conversation, and its other texts, at any
    depth. A BEIR query's `text` is short, and both."""
    questions: list[str] = []
    answers: list[str] = []
    texts: list[str] = []
    waiting: list[tuple[str, Any, bool]] = [("", value, False)]
    while waiting:
        key, item, asked = waiting.pop()
        if isinstance(item, str):
            (answers if key == "assistant" else texts).append(item)
            if asked or (key == "text" and len(item.split()) <= 40):
                questions += [item, take_apart(item)[0]]
        elif isinstance(item, dict):
            waiting += [_below(key, part, asked, item) for key, part in item.items()]
        elif isinstance(item, list):
            waiting += [(key, part, asked) for part in item]
    return HeldOut(where, "", tuple(questions), tuple(texts), tuple(answers))


def _below(key: str, part: Any, asked: bool, item: Mapping[str, Any]) -> tuple[str, Any, bool]:
    """What an object holds under a key, and whether it is asked: what a user says is, what others say is not."""
    role = item.get("role")
    if key == "content" and isinstance(role, str):
        return role, part, role == "user"
    if key == "answer" and item.keys() <= SHORT_KEYS:
        return "assistant", part, False
    return key, part, asked or key in QUESTION_KEYS
